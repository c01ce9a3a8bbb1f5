"""Where the sockets are: one private run directory per fleet and host.

The run directory is ``$CDN_RUN_DIR``; else ``run`` beside the ``supervisord.conf``
of the working directory, if there is one; else ``$XDG_RUNTIME_DIR/cdn``; else
``/run/cdn`` for root; else ``./run``.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path holds 108 bytes with its closing NUL, unix(7)."""

LONGEST_SOCKET_NAME = "supervisor.sock.1234567"  # supervisor binds a temporary name with its pid first


class RunDirError(Exception):
    """The run directory cannot serve; the text says why and what to do."""


class RunDir(NamedTuple):
    """The run directory's paths and endpoints."""

    path: Path

    @property
    def telemetry(self) -> str:
        """Publishers connect here (ATLAS's XSUB)."""
        return f"ipc://{self.path}/telemetry.sock"

    @property
    def feed(self) -> str:
        """Subscribers connect here (ATLAS's XPUB)."""
        return f"ipc://{self.path}/feed.sock"

    @property
    def agents(self) -> str:
        """Daemons and wardens connect here (ATLAS's ROUTER)."""
        return f"ipc://{self.path}/agents.sock"

    @property
    def operators(self) -> str:
        """cdnctl connects here (ATLAS's other ROUTER)."""
        return f"ipc://{self.path}/operators.sock"

    @property
    def supervisor(self) -> Path:
        """supervisord's XML-RPC."""
        return self.path / "supervisor.sock"

    def lock(self, name: str) -> Path:
        """The lock of one instance: flock(2)ed by the process that is it."""
        return self.path / "locks" / f"{name}.lock"

    def state(self, name: str) -> Path:
        """Where one instance keeps what must outlive it."""
        return self.path / "state" / name

    def stacks(self, instance: str, pid: int) -> Path:
        """Where a process that is stuck leaves the stacks of its threads."""
        return self.path / "stacks" / f"{instance}.{pid}.txt"

    @property
    def operator_token(self) -> Path:
        """What whoever gives orders by HTTP has to know; made by ATLAS."""
        return self.path / "operator.token"

    def log(self, name: str) -> Path:
        """Where supervisord.conf sends one program's output."""
        return self.path / f"{name}.log"


def host_name() -> str:
    """This host's name, fit for topics and file names: anything but letters, digits, '_', '.' and '-' becomes '-'."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:64] or "localhost"


def default_run_dir(environ: Mapping[str, str] = os.environ) -> RunDir:
    """The run directory by the rule at the head of this module; nothing is made or checked."""
    if configured := environ.get("CDN_RUN_DIR"):
        return RunDir(Path(configured).absolute())
    if Path("supervisord.conf").is_file():
        return RunDir(Path("run").absolute())
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return RunDir(Path(runtime).absolute() / "cdn")
    if os.geteuid() == 0:
        return RunDir(Path("/run/cdn"))
    return RunDir(Path("run").absolute())


def _not_ours(link: os.stat_result, status: os.stat_result) -> str:
    """Why what is there cannot be made private; empty if it can. ``link`` is of the path itself, if that is a link."""
    own = os.geteuid()
    if status.st_uid != own:
        return f"it belongs to uid {status.st_uid}, this is uid {own}"
    if link.st_uid not in (own, 0):
        return f"it is a link of uid {link.st_uid}, who may have it lead anywhere"
    return ""


def _refuse_others_files(path: Path) -> None:
    """Where everybody may write, as in /tmp, what is there may be anybody's, and others need the place.

    A volume or tmpfs that is mounted anew is everybody's, too, and empty.
    """
    if os.listdir(path):
        raise RunDirError(
            f"cannot use run directory {path}: everybody may write to it, and it is not empty; "
            f"set CDN_RUN_DIR to a directory of your own"
        )


def prepare(run_dir: RunDir) -> RunDir:
    """Make the run directory if there is none, and see that it is private, writable and short enough.

    Raises RunDirError.
    """
    path = run_dir.path
    longest = len(os.fsencode(path / LONGEST_SOCKET_NAME))
    if longest > MAX_SOCKET_PATH_BYTES:
        excess = longest - MAX_SOCKET_PATH_BYTES
        raise RunDirError(
            f"cannot use run directory {path}: socket paths in it would have {longest} bytes, the limit is "
            f"{MAX_SOCKET_PATH_BYTES}; set CDN_RUN_DIR to a path at least {excess} bytes shorter"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, status = path.lstat(), path.stat()
        if problem := _not_ours(link, status):
            raise RunDirError(f"cannot use run directory {path}: {problem}; set CDN_RUN_DIR to a directory of your own")
        was_everybodys = status.st_mode & stat.S_IWOTH
        if was_everybodys:
            _refuse_others_files(path)
        if stat.S_IMODE(status.st_mode) != 0o700:
            path.chmod(0o700)
        if was_everybodys:
            _refuse_others_files(path)  # which may have come just before
        for name in ("locks", "state"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RunDirError(
            f"cannot use run directory {path}: {error.strerror}; set CDN_RUN_DIR to a directory that you may write"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunDirError(
            f"cannot use run directory {path}: it is not writable; set CDN_RUN_DIR to a directory that you may write"
        )
    return run_dir
