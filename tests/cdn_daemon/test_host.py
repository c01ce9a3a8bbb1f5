"""A service's process, for real: it serves alone, drains, says why it ends, and never lies about its loop."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bus.broker import Broker
from bus.codec import Decoder
from bus.endpoints import RunDir
from bus.messages import DaemonStatus, LifecyclePhase, Telemetry
from tests.support import ServiceProcess, free_port, until

Spawn = Callable[..., ServiceProcess]
TINY = ("-m", "tests.cdn_daemon.tiny")
BUSY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Spawn:
    """Starts tiny services in the test's run directory, and ends them afterwards."""

    def start(**env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, *TINY, **env)
        request.addfinalizer(process.stop)
        return process

    return start


def ready(tiny: ServiceProcess) -> dict[str, Any]:
    """Answer of /readyz."""
    return dict(json.loads(tiny.get("/readyz")[1]))


def test_it_stands_alone(spawn: Spawn) -> None:
    """No supervisord, no ATLAS, no bus: it serves, is ready, healthy and measured."""
    tiny = spawn()
    assert tiny.get("/") == (200, b"hello")
    until(lambda: ready(tiny)["health"] == "healthy")
    assert ready(tiny) == {"ready": True, "phase": "serving", "health": "healthy", "reasons": []}
    assert tiny.get("/livez")[0] == 200
    until(lambda: b'tiny_things_total{service="tiny"' in tiny.get("/metrics")[1])
    metrics = tiny.get("/metrics")[1].decode()
    assert "cdn_service_ready{" in metrics
    assert "# TYPE tiny_things_total counter" in metrics


def test_answers_have_the_time_of_their_making(spawn: Spawn) -> None:
    """The Date header, though nothing wakes the server every second to make it."""
    tiny = spawn()

    def date_s() -> float:
        with urlopen(f"{tiny.url()}/livez", timeout=10) as answer:
            return parsedate_to_datetime(answer.headers["date"]).timestamp()

    for _ in range(2):
        before_s = time.time()
        said_s = date_s()
        assert int(before_s) <= said_s <= time.time()
        until(lambda before_s=before_s: int(time.time()) > int(before_s))  # type: ignore[misc]


def test_ooda_answers(spawn: Spawn) -> None:
    """Its loop can be seen and switched by HTTP; nonsense, and every web page, are refused."""
    tiny = spawn()
    assert json.loads(tiny.get("/ooda")[1])["mode"] == "on"
    assert tiny.get("/ooda/mode", data=b'{"mode": "shadow"}') == (200, b'{"mode":"shadow"}')
    assert json.loads(tiny.get("/ooda")[1])["mode"] == "shadow"
    for body, status in ((b'{"mode": "maybe"}', 400), (b"{", 400), (b"[" * 900, 400), (b" " * 5000, 413)):
        got, answer = tiny.get("/ooda/mode", data=body)
        assert (got, json.loads(answer)["error"]["status"]) == (status, status)
    assert tiny.get("/ooda/mode")[0] == 405
    host = tiny.url().removeprefix("http://")
    for origin in (tiny.url(), "http://evil.example.com", "null"):  # its own too: a rebound name looks like that
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("POST", "/ooda/mode", b'{"mode": "off"}', {"Origin": origin})
        assert connection.getresponse().status == 403
        connection.close()
    assert json.loads(tiny.get("/ooda")[1])["mode"] == "shadow"


def test_sigterm_drains(spawn: Spawn, run_path: Path) -> None:
    """What is in flight is answered, nothing more is accepted, and it ends with 0, leaving no stacks."""
    tiny = spawn()
    url = tiny.url()
    answers: list[tuple[int, bytes]] = []
    thread = Thread(target=lambda: answers.append(tiny.get("/slow?s=2")))
    thread.start()
    until(lambda: b'requests_in_flight{service="tiny",instance_id="tiny"} 1' in tiny.get("/metrics")[1])
    os.kill(tiny.pid, signal.SIGTERM)
    until(lambda: "draining" in tiny.log())
    port = int(url.rpartition(":")[2])

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    until(refused)
    thread.join()
    assert answers == [(200, b"slow but done")]
    assert tiny.wait() == 0
    assert not list((run_path / "stacks").iterdir())


def test_what_a_killed_one_left_of_stacks_goes_with_its_successors_start(spawn: Spawn, run_path: Path) -> None:
    """An empty file tells nothing; without a warden one with stacks in it is all that tells what it hung in."""
    first = spawn()
    first.url()
    (empty,) = (run_path / "stacks").iterdir()
    first.stop()
    told, other = empty.with_name("tiny.1.txt"), empty.with_name("tiny.other.1.txt")
    told.write_text("in block")
    other.touch()
    assert empty.exists()
    second = spawn()
    second.url()
    assert {each.name for each in (run_path / "stacks").iterdir()} == {
        told.name,
        other.name,
        f"tiny.{second.pid}.txt",
    }


def test_a_drain_says_how_it_goes(spawn: Spawn, run_dir: RunDir) -> None:
    """What is still under way, and for how long it may be, are the reason in its status, and change as it ends."""
    broker = Broker(run_dir)
    tiny = spawn(CDN_DRAIN_S="600")
    url = tiny.url()
    clients = [Thread(target=tiny.get, args=(f"/wait?for={name}",)) for name in ("first", "second")]
    for client in clients:
        client.start()
    reasons: list[str] = []
    decoder: Decoder[Telemetry] = Decoder(Telemetry)

    def heard(text: str) -> bool:
        for _, frame in broker.turn(0.02).telemetry:
            status = decoder.decode(frame)
            assert isinstance(status, DaemonStatus)
            if status.phase is LifecyclePhase.DRAINING:
                reasons.extend(status.reasons)
        return any(re.fullmatch(rf"draining: {text}, (600\.0|5\d\d\.\d) s left", reason) for reason in reasons)

    try:
        until(lambda: b'in_flight{service="tiny",instance_id="tiny"} 2' in urlopen(f"{url}/metrics").read())
        os.kill(tiny.pid, signal.SIGTERM)
        until(lambda: heard("2 requests, 1 background task"), what=f"{reasons}")
        (run_dir.path / "first").touch()
        until(lambda: heard("1 request, 1 background task"), what=f"{reasons}")
        (run_dir.path / "second").touch()
        assert tiny.wait() == 0
    finally:
        broker.close()
        for name in ("first", "second"):
            (run_dir.path / name).touch()
        for client in clients:
            client.join()


@pytest.mark.parametrize(("path", "log"), [("/raises", "this service is broken"), ("/own500", "")])
def test_what_raises_is_answered(spawn: Spawn, path: str, log: str) -> None:
    """In the form of every refusal, and logged; a 500 of the application's own goes out as it is."""
    tiny = spawn()
    status, body = tiny.get(path)
    assert status == 500
    if log:
        what = "cannot answer: the service has a fault; see its log"
        assert json.loads(body) == {"error": {"status": 500, "what": what}}
        assert log in tiny.log()
    else:
        assert body == b"Internal Server Error"
    assert tiny.get("/") == (200, b"hello")


def test_an_answer_that_breaks_off(spawn: Spawn) -> None:
    """It cannot be taken back, so its client sees that it is not whole."""
    tiny = spawn()
    with pytest.raises(IncompleteRead), urlopen(f"{tiny.url()}/raises?late=1") as answer:
        answer.read()
    assert tiny.get("/") == (200, b"hello")


def test_a_drain_ends_at_its_deadline(spawn: Spawn) -> None:
    """A request that takes for ever does not keep the process."""
    tiny = spawn(CDN_DRAIN_S="1")

    def ask() -> None:
        with pytest.raises(Exception):  # noqa: B017 - it is cut off, in whichever way
            assert tiny.get("/slow?s=3600")[0] == 200

    thread = Thread(target=ask)
    tiny.url()
    thread.start()
    until(lambda: b'in_flight{service="tiny",instance_id="tiny"} 1' in tiny.get("/metrics")[1])
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    thread.join()


def test_a_second_sigterm_ends_it(spawn: Spawn) -> None:
    """Told twice, it does not wait for what is in flight."""
    tiny = spawn(CDN_DRAIN_S="3600")
    with socket.create_connection(("127.0.0.1", int(tiny.url().rpartition(":")[2]))) as client:
        client.sendall(b"GET /slow?s=3600 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: b'in_flight{service="tiny",instance_id="tiny"} 1' in tiny.get("/metrics")[1])
        os.kill(tiny.pid, signal.SIGTERM)
        until(lambda: "draining" in tiny.log())
        os.kill(tiny.pid, signal.SIGTERM)
        assert tiny.wait() == 0


def test_websockets_are_told(spawn: Spawn) -> None:
    """They work, and are closed with 1012, service restart, when it drains."""
    tiny = spawn()
    with connect(tiny.url().replace("http", "ws") + "/echo") as client:
        client.send("hi")
        assert client.recv() == "hi"
        os.kill(tiny.pid, signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=30)
        assert client.close_code == 1012
    assert tiny.wait() == 0


def test_a_port_in_use(spawn: Spawn) -> None:
    """It ends with 78 and says which port, and what to do."""
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        tiny = spawn(CDN_PORT=str(port))
        assert tiny.wait() == 78
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in tiny.log()


def test_a_second_copy_refuses(spawn: Spawn) -> None:
    """The second in the same run directory ends with 78 and names the first, which goes on."""
    first = spawn()
    first.url()
    second = spawn()
    assert second.wait() == 78
    assert f"pid {first.pid} already is tiny" in second.log()
    assert first.get("/")[0] == 200


@pytest.mark.parametrize(
    ("env", "code", "text"),
    [
        ({"CDN_PORT": "http"}, 78, "cannot use CDN_PORT=http"),
        ({"CDN_RUN_DIR": "/proc/no"}, 78, "cannot use run directory /proc/no"),
        ({"CDN_RUN_DIR": "/" + "x" * 200}, 78, "the limit is 107"),
        ({"TINY_BACKGROUND": "raise"}, 70, "background task is broken"),
        ({"TINY_BACKGROUND": "misconfigured"}, 78, "cannot find the colour: set TINY_COLOUR"),
        ({"TINY_LIFESPAN": "misconfigured"}, 78, "cannot find the size: set TINY_SIZE"),
        ({"TINY_LIFESPAN": "raise"}, 70, "lifespan is broken"),
        ({"TINY_DAEMON": "dies"}, 70, "the daemon thread died; the process goes with it"),
    ],
)
def test_it_says_why_it_ends(spawn: Spawn, env: dict[str, str], code: int, text: str) -> None:
    """The exit code tells the supervisor, the log tells the operator."""
    tiny = spawn(**env)
    assert tiny.wait() == code
    assert text in tiny.log()


def test_it_says_what_the_system_refused(spawn: Spawn, run_dir: RunDir) -> None:
    """In one line, which goes to the warden too: where the disk is full no log has it. It may pass, so it is no 78."""
    run_dir.lock("tiny").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as warden:
        warden.bind(str(run_dir.path / "notify.sock"))
        warden.settimeout(30)
        tiny = spawn(NOTIFY_SOCKET=str(run_dir.path / "notify.sock"))
        assert tiny.wait() == 70
        assert f"STATUS=cannot start tiny: Is a directory: {run_dir.lock('tiny')}" in warden.recv(4096).decode()


def test_incarnations_count(spawn: Spawn, run_dir: RunDir) -> None:
    """Each start in a run directory has the next number; a damaged lock file starts anew."""
    for expected in (1, 2):
        tiny = spawn()
        assert tiny.get("/")[0] == 200
        assert f"tiny #{expected} listens" in tiny.log()
        tiny.stop()
    run_dir.lock("tiny").write_bytes(b"\xff{")
    tiny = spawn()
    tiny.url()
    assert "tiny #1 listens" in tiny.log()
    assert "lock file is damaged" in tiny.log()


def test_health_checks_run(spawn: Spawn, run_path: Path) -> None:
    """One that fails and one that hangs make it unhealthy and unready with the reason; both heal."""
    tiny = spawn()
    until(lambda: ready(tiny)["health"] == "healthy")
    for name, reason in (("ill", "well: RuntimeError: there is a file called ill"), ("hang", "hangs: no answer")):
        (run_path / name).touch()
        until(lambda: ready(tiny)["health"] == "unhealthy")
        assert tiny.get("/readyz")[0] == 503
        assert reason in ready(tiny)["reasons"][0]
        assert tiny.get("/livez")[0] == 200
        (run_path / name).unlink()
        until(lambda: ready(tiny)["health"] == "healthy")


def test_metrics_that_raise(spawn: Spawn, run_path: Path) -> None:
    """A fault in an author's code costs health, not the process."""
    tiny = spawn()
    until(lambda: ready(tiny)["health"] == "healthy")
    (run_path / "nonsense").touch()
    until(lambda: ready(tiny)["health"] == "degraded")
    assert ready(tiny)["reasons"] == ["the service's metrics raised ValueError: nonsense"]
    (run_path / "nonsense").unlink()
    until(lambda: ready(tiny)["health"] == "healthy")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("puzzling", "the loop's orient raised ValueError: puzzling"),
        ("undecided", "ValueError: its truth is ambiguous"),
        ("raving", "RuntimeError: ??????????"),
        ("endless", "the service's metrics raised FrameError: cannot send ServiceMetrics"),
    ],
)
def test_what_an_author_says(spawn: Spawn, run_path: Path, file: str, reason: str) -> None:
    """A loop that raises, what has no truth, reasons and metrics that fit into no message: health, while it lasts."""
    tiny = spawn()
    until(lambda: ready(tiny)["health"] == "healthy")
    (run_path / file).touch()
    until(lambda: ready(tiny)["health"] in ("degraded", "unhealthy"))
    (told,) = ready(tiny)["reasons"]
    assert reason in told
    assert len(told) < 1100
    (run_path / file).unlink()
    until(lambda: ready(tiny)["health"] == "healthy")


def test_a_blocked_loop_is_not_vouched_for(spawn: Spawn, run_path: Path) -> None:
    """A loop that does not turn for CDN_LIMIT_LOOP_LAG_S: stacks with the guilty line, then exit 70."""
    tiny = spawn(CDN_LIMIT_LOOP_LAG_S="0.2:1")
    tiny.url()

    def ask() -> None:
        with pytest.raises(OSError):
            tiny.get("/block?s=3600")

    thread = Thread(target=ask)
    thread.start()
    assert tiny.wait() == 70
    thread.join()
    (stacks,) = (run_path / "stacks").iterdir()
    assert "in block" in stacks.read_text()
    assert "blocked loop: loop_lag_s" in stacks.read_text()


def test_a_deadlock_is_found(spawn: Spawn, run_path: Path) -> None:
    """Declared work past its deadline: the stacks show both threads at their locks, and the process ends as a bug."""
    tiny = spawn()
    assert tiny.get("/deadlock?s=1")[0] == 200
    assert tiny.wait() == 70
    assert re.search(r"deadlock: take both on thread (forth|back) is past its deadline of 1 s", tiny.log())
    (stacks,) = (run_path / "stacks").iterdir()
    assert stacks.read_text().count("in take") == 2


def test_a_declared_long_call_is_no_stall(spawn: Spawn) -> None:
    """The loop is blocked for longer than its limit, but it was said; what goes on for longer than said is a stall."""
    tiny = spawn(CDN_LIMIT_LOOP_LAG_S="0.2:0.5")
    assert tiny.get("/declared?may=60&s=2") == (200, b"long but declared")
    until(lambda: ready(tiny)["health"] == "healthy")
    with pytest.raises(OSError):
        tiny.get("/declared?may=0.5&s=3600")
    assert tiny.wait() == 70


def test_a_frozen_process_accuses_nobody(spawn: Spawn) -> None:
    """Stopped for longer than every limit and thawed, it goes on."""
    tiny = spawn(CDN_LIMIT_LOOP_LAG_S="0.2:0.5")
    until(lambda: ready(tiny)["health"] == "healthy")
    os.kill(tiny.pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{tiny.pid}/stat").read_text().split()[2] == "T")
    with pytest.raises(OSError):
        tiny.get("/", timeout_s=2.5)
    os.kill(tiny.pid, signal.SIGCONT)
    until(lambda: "was away for" in tiny.log())
    until(lambda: ready(tiny)["health"] == "healthy")
    assert tiny.process.poll() is None


def test_a_loop_that_waits_for_a_cpu_is_not_blocked(spawn: Spawn) -> None:
    """Its thread starves beside busy ones, for far longer than its limit, which the daemon's sees; it is let live."""
    tiny = spawn(CDN_LIMIT_LOOP_LAG_S="0.2:0.5")
    until(lambda: ready(tiny)["health"] == "healthy")
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(tiny.pid, {cpu})  # of a pid: its main thread alone
    os.sched_setscheduler(tiny.pid, os.SCHED_IDLE, os.sched_param(0))
    schedstat = Path(f"/proc/{tiny.pid}/task/{tiny.pid}/schedstat")
    before_ns = int(schedstat.read_text().split()[1])
    hogs = [subprocess.Popen([sys.executable, "-c", BUSY, str(cpu)]) for _ in range(3)]
    try:
        until(lambda: int(schedstat.read_text().split()[1]) > before_ns + 3e9 or tiny.process.poll() is not None)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    until(lambda: ready(tiny)["health"] == "healthy")
    assert "blocked loop" not in tiny.log()


def test_pages_of_other_sites(spawn: Spawn) -> None:
    """What a page of another site can send, by its Origin or by a name rebound to this host, is refused; no more is."""
    tiny = spawn(CDN_HOSTS="www.example.com")
    here = tiny.url().removeprefix("http://")

    def ask(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection(here, timeout=30)
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status in (403, 421):
            assert json.loads(body)["error"]["next"]
        connection.close()
        return answer.status

    port = here.rpartition(":")[2]
    for host in (here, f"localhost:{port}", "[::1]", "www.example.com", "WWW.example.com:443"):
        assert ask("GET", "/metrics", Host=host) == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "192.0.2.1"):
        assert ask("GET", "/metrics", Host=host) == 421
        assert ask("POST", "/nowhere", Host=host, Origin=f"http://{host}") == 421
        assert ask("GET", "/readyz", Host=host) == 200  # as balancers ask
    for origin in ("http://evil.example", "null", f"http://{here}.evil.example", "http://127.0.0.1:1"):
        assert ask("POST", "/nowhere", Origin=origin) == 403
        assert ask("DELETE", "/nowhere", Origin=origin) == 403
        assert ask("GET", "/metrics", Origin=origin) == 200  # which it cannot read
    assert ask("POST", "/nowhere") == 404
    assert ask("POST", "/nowhere", Origin=f"http://{here}") == 404
    through = {"Origin": "https://www.example.com", "X-Forwarded-Host": "www.example.com"}
    assert ask("POST", "/nowhere", **through) == 404
