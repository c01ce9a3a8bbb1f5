"""What tests of real processes need: a supervisord of their own, and waiting without hoping."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

T = TypeVar("T")


class NotInTime(AssertionError):
    """What was waited for did not happen."""


def until(predicate: Callable[[], T], *, within_s: float = 30.0, every_s: float = 0.02, what: str = "") -> T:
    """Call predicate until it returns something true, and return that.

    Raises NotInTime, with the last answer, if it never does. within_s is how long a hopeless
    case may take, not how quick the good one must be.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline_s:
            name = what or getattr(predicate, "__name__", "it")
            raise NotInTime(f"{name}: not within {within_s} s; last answer {answer!r}")
        time.sleep(every_s)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; prefer port 0 where the program can say what it got."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def short_dir() -> Iterator[Path]:
    """A private directory with a path short enough for sockets; pytest's tmp_path may be too long."""
    path = Path(tempfile.mkdtemp(prefix="cdn-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment(run_dir: Path, **more: str) -> dict[str, str]:
    """This process's environment, for a fleet in run_dir: no CDN_* of the outside reaches it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("CDN_", "SUPERVISOR_", "NOTIFY_"))}
    return clean | {"CDN_RUN_DIR": str(run_dir), "PYTHONPATH": str(ROOT)} | more


def is_running(pid: int) -> bool:
    """Whether the process lives; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, and wait until they are gone."""
    try:
        top = psutil.Process(pid)
        everyone = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in everyone:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(everyone, timeout=10)


class Supervisord:
    """A real supervisord in the foreground, with the given programs, in a run directory of its own.

    ``programs`` maps a program's name to its options of supervisord.conf; ``command`` is needed, the
    rest has the defaults of the project's own supervisord.conf.
    """

    def __init__(
        self,
        run_dir: Path,
        programs: Mapping[str, Mapping[str, str]],
        *,
        warden: bool = True,
        warden_options: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.conf = run_dir / "supervisord.conf"
        self.env = environment(run_dir, **(env or {}))
        self.conf.write_text(self._conf(programs, warden, warden_options or {}))
        self.process: subprocess.Popen[bytes] | None = None

    def _conf(self, programs: Mapping[str, Mapping[str, str]], warden: bool, options: Mapping[str, str]) -> str:
        run = self.run_dir
        lines = [
            "[supervisord]",
            f"logfile={run}/supervisord.log",
            f"pidfile={run}/supervisord.pid",
            f"childlogdir={run}",
            f'environment=CDN_RUN_DIR="{run}"',
            "[unix_http_server]",
            f"file={run}/supervisor.sock",
            "[supervisorctl]",
            f"serverurl=unix://{run}/supervisor.sock",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        ]
        if warden:
            lines += ["[rpcinterface:cdn]", "supervisor.rpcinterface_factory=cdn_daemon.warden:make_rpcinterface"]
            lines += [f"{key}={value}" for key, value in options.items()]
        defaults = {
            "autostart": "true",
            "autorestart": "unexpected",
            "exitcodes": "0,78",
            "startsecs": "0",
            "stopwaitsecs": "15",
            "redirect_stderr": "true",
            "stdout_logfile": f"{run}/%(program_name)s.log",
            "directory": str(ROOT),
        }
        for name, program in programs.items():
            lines += [f"[program:{name}]", *(f"{key}={value}" for key, value in {**defaults, **program}.items())]
        return "\n".join(lines) + "\n"

    def start(self) -> Supervisord:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            [str(BIN / "supervisord"), "-n", "-c", str(self.conf)],
            env=self.env,
            cwd=self.run_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._answers, what="supervisord answers")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            log = self.run_dir / "supervisord.log"
            raise AssertionError(
                f"supervisord ended with {self.process.returncode}:\n{log.read_text() if log.exists() else ''}"
            )
        return self.ctl("pid").returncode == 0

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run supervisorctl."""
        return subprocess.run(
            [str(BIN / "supervisorctl"), "-c", str(self.conf), *arguments],
            env=self.env,
            cwd=self.run_dir,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def states(self) -> dict[str, str]:
        """Program → state, in supervisor's words."""
        return {
            line.split()[0]: line.split()[1] for line in self.ctl("status").stdout.splitlines() if len(line.split()) > 1
        }

    def pid(self, name: str) -> int:
        """Pid of a program's process; 0 when there is none."""
        answer = self.ctl("pid", name).stdout.strip()
        return int(answer) if answer.isdigit() else 0

    def log(self, name: str = "supervisord") -> str:
        """What a program, or supervisord, has logged so far."""
        path = self.run_dir / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Stop it as an operator would; by force, with all its children, if it does not end."""
        if self.process is None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                kill_tree(self.process.pid)
                self.process.wait()
        for child in children:
            kill_tree(child.pid)
        self.process = None

    def __enter__(self) -> Supervisord:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class ServiceProcess:
    """A service run by hand: its own process, its own log, no supervisord unless the test pretends one."""

    def __init__(self, run_dir: Path, *command: str, name: str = "service", **env: str) -> None:
        self.log_path = run_dir / f"{name}.{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=environment(run_dir, **({"CDN_PORT": "0"} | env)),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def url(self) -> str:
        """Base URL of its server, once it serves."""

        def listening() -> str | None:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
            found = re.search(r"listens on 127\.0\.0\.1 port (\d+)\n(?s:.*)serving\n", self.log())
            return f"http://127.0.0.1:{found[1]}" if found else None

        return until(listening, what=f"{self.log_path.name} serves") or ""

    def get(self, path: str, *, timeout_s: float = 30.0, data: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one request; connection errors are raised."""
        request = urllib.request.Request(self.url() + path, data=data)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(timeout=60)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            kill_tree(self.process.pid)
        self.process.wait()

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal, which must have the right form."""
        reason: dict[str, Any] = json.loads(self.body)["error"]
        assert set(reason) == {"status", "what", "value", "limit", "next"}
        assert reason["status"] == self.status
        assert reason["what"].startswith("cannot ")
        return reason


class DoneAnswer(Answer):
    """An answer that has JSON only if it is no refusal."""

    @property
    def json(self) -> Any:
        """The body as JSON."""
        assert self.status in (200, 201), self.body
        return super().json


A = TypeVar("A", bound=Answer)


class HttpClient(Generic[A]):
    """Requests to one server, each on a connection of its own; with its token, where it has one."""

    def __init__(self, port: int, answer: type[A], token: Path | None = None) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._answer = answer
        self._token = token

    @property
    def token(self) -> str:
        """The service's; empty before it has one."""
        return self._token.read_text().strip() if self._token is not None and self._token.exists() else ""

    def call(self, method: str, path: str, body: Any = None, *, token: str | bool = True, **headers: str) -> A:
        """One request; a body that is neither bytes nor an iterator is sent as JSON.

        ``token`` may be False, for none, or another one; of a header's name ``_`` becomes ``-``.
        """
        sent = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        shown = self.token if token is True else token
        if shown:
            sent.setdefault("authorization", f"Bearer {shown}")
        if body is not None and not isinstance(body, bytes | Iterator):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path.removeprefix(self.url), body, sent)
            answer = connection.getresponse()
            return self._answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


C = TypeVar("C", bound=HttpClient[Any])


@contextmanager
def ready(
    run_path: Path, module: str, client: Callable[[int], C], *, name: str = "service", **env: str
) -> Iterator[tuple[C, ServiceProcess]]:
    """A service as its supervisor would start it, once it is ready; and its client."""
    with ServiceProcess(run_path, "-m", module, name=name, **env) as service:
        one = client(int(service.url().rpartition(":")[2]))
        until(lambda: one.call("GET", "/readyz", token=False).status == 200, what="the service is ready")
        yield one, service


@contextmanager
def served(app: Any, beside: Callable[[], Awaitable[None]] | None = None) -> Iterator[int]:
    """An ASGI application on a server of its own, in a thread of this process, with what runs beside it; its port."""
    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False)
    server = uvicorn.Server(config)

    async def serve() -> None:
        task = asyncio.ensure_future(beside()) if beside is not None else None
        await server.serve()
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def run() -> None:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server listens")
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
