"""Another user of the same host: what the run directory, its sockets and files are to nobody (uid 65534)."""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import stat
import struct
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cdn_daemon.warden.inbox import Inbox
from tests.support import ServiceProcess, Supervisord, short_dir, until
from tests.warden.programs import beating

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
ATLAS = ("-m", "services.atlas")
BUS = ("telemetry.sock", "feed.sock", "agents.sock", "operators.sock")


def as_nobody(ask: Callable[[], Any]) -> Any:
    """What ask returns (JSON), in a child that is another user; no program is started, as none may be reachable."""
    nobody = pwd.getpwnam("nobody")
    "localhost".encode("idna")  # what getaddrinfo needs is loaded while its file can be read
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            os.setgroups([])
            os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
            os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
            with open(writing, "w") as answer:
                json.dump(ask(), answer)
            code = 0
        except BaseException:  # noqa: BLE001 (nothing of the test may go on in the child)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading) as told:
        content = told.read()
    _, status = os.waitpid(child, 0)
    assert status == 0
    return json.loads(content)


def error_of(act: Callable[[], Any]) -> str | None:
    """Name of the OSError that it raises."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[Path, str]]:
    """A run directory with everything in it, and ATLAS's address: supervisord, a program that beats, ATLAS."""
    with (
        short_dir() as run_dir,
        Supervisord(run_dir, {"web": beating(run_dir, "web")}) as supervisord,
        ServiceProcess(run_dir, *ATLAS) as atlas,
    ):
        url = atlas.url()
        until(lambda: supervisord.states().get("web") == "RUNNING", what="web is ready")
        until(lambda: all((run_dir / name).is_socket() for name in BUS), what="the bus is there")
        yield run_dir, url


def everything(run_dir: Path) -> list[Path]:
    """All files and directories of the fleet."""
    return [Path(at, name) for at, directories, files in os.walk(run_dir) for name in (*directories, *files)]


def test_the_run_directory_is_closed(fleet: tuple[Path, str]) -> None:
    """Nothing in it can be listed, read, written, connected to or sent to."""
    run_dir, _ = fleet
    paths = everything(run_dir)
    sockets = [path for path in paths if path.is_socket()]
    assert {*BUS, "supervisor.sock", "0.sock"} <= {path.name for path in sockets}
    assert {"operator.token", "journal.jsonl"} & {path.name for path in paths}

    def ask() -> dict[str, Any]:
        found: dict[str, Any] = {
            "list": error_of(lambda: os.listdir(run_dir)),
            "make": error_of(lambda: (run_dir / "mine").touch()),
        }
        for path in paths:
            found[str(path)] = error_of(lambda at=path: os.stat(at))  # type: ignore[misc]
        for path in sockets:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_UNIX, kind) as mine:
                    found[f"{path} {kind}"] = error_of(lambda to=str(path), by=mine: by.connect(to))  # type: ignore[misc]
        return found

    assert set(as_nobody(ask).values()) == {"EACCES"}


def test_were_it_open_its_sockets_and_secrets_are_not(fleet: tuple[Path, str]) -> None:
    """The second lock: somebody has opened the directory, and still none but the owner connects or reads a token."""
    run_dir, _ = fleet
    directories = [run_dir, *(path for path in everything(run_dir) if path.is_dir())]
    before = [stat.S_IMODE(path.stat().st_mode) for path in directories]
    sockets = [path for path in everything(run_dir) if path.is_socket()]
    secrets = [
        run_dir / "operator.token",
        *(path for path in (run_dir / "state" / "atlas").iterdir() if path.is_file()),
    ]
    assert len(secrets) > 1

    def ask() -> dict[str, Any]:
        found: dict[str, Any] = {str(path): error_of(lambda at=path: open(at).close()) for path in secrets}  # type: ignore[misc]
        for path in sockets:
            kind = socket.SOCK_DGRAM if path.parent.name == "notify" else socket.SOCK_STREAM
            with socket.socket(socket.AF_UNIX, kind) as mine:
                found[str(path)] = error_of(lambda to=str(path), by=mine: by.connect(to))  # type: ignore[misc]
        return found

    for path in directories:
        path.chmod(0o755)
    try:
        found = as_nobody(ask)
    finally:
        for path, mode in zip(directories, before, strict=True):
            path.chmod(mode)
    assert {path: why for path, why in found.items() if why != "EACCES"} == {}


def test_by_http_it_reads_and_orders_nothing(fleet: tuple[Path, str]) -> None:
    """ATLAS's port is everybody's on this host: the fleet can be seen, and not told anything."""
    _, url = fleet

    def ask() -> dict[str, int]:
        order = b'{"verb": "restart", "names": ["web"]}'
        found = {}
        for what, data, token in (("fleet", None, ""), ("none", order, ""), ("guessed", order, "Bearer " + "x" * 43)):
            path = "/api/v1/fleet" if data is None else "/api/v1/commands"
            headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
            request = urllib.request.Request(url + path, data=data, headers=headers)
            try:
                found[what] = urllib.request.urlopen(request, timeout=30).status
            except urllib.error.HTTPError as error:
                found[what] = error.code
        return found

    assert as_nobody(ask) == {"fleet": 200, "none": 401, "guessed": 401}


def test_a_stranger_in_a_shared_place_speaks_for_nobody(run_path: Path) -> None:
    """A notify socket that anybody can reach: the kernel says whose a datagram is, whatever it says of itself."""
    inbox = Inbox(run_path / "notify")
    inbox.open("web")
    place = inbox.path("web")
    for path in (run_path, place.parent):
        path.chmod(0o755)
    place.chmod(0o666)
    pretended = f"READY=1\nMAINPID={os.getpid()}\nWATCHDOG=1".encode()

    def ask() -> list[str | None]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mine:
            sent = error_of(lambda: mine.sendto(pretended, str(place)))
            # Whose it is can be claimed only by who may become them: CAP_SYS_ADMIN, CAP_SETUID.
            owner = socket.SCM_CREDENTIALS, struct.pack("iII", os.getppid(), 0, 0)
            claimed = error_of(lambda: mine.sendmsg([pretended], [(socket.SOL_SOCKET, *owner)], 0, str(place)))
        return [sent, claimed]

    try:
        assert as_nobody(ask) == [None, "EPERM"]
        assert inbox.drain(lambda _: os.getpid()) == []
        assert inbox.refused == {"stranger": 1}
    finally:
        with suppress(OSError):
            inbox.close()
