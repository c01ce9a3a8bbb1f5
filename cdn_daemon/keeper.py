"""The keeper: a small process between cdn-run and the program, so that neither leaves the other behind.

    cdn-run ──socket──▶ keeper ──▶ the program ──▶ whatever it starts

It is forked before cdn-run has any thread, stands in a session of its own, and
adopts what the program's descendants leave behind (PR_SET_CHILD_SUBREAPER). When
the socket closes, for whatever reason, SIGKILL included, all that lives below it
is killed. Should it be killed itself, the program dies by PR_SET_PDEATHSIG, and
cdn-run, which is a subreaper too, ends the rest.

A parent-death signal set by cdn-run itself would not do: it is tied to the thread
that forked, does not reach grandchildren, and is set after fork(2) in a process
with threads.

One datagram is one message. To the keeper: ``lock`` (with a descriptor), ``fork``,
``go``, ``signal N``, ``kill``, ``probe N``, ``unprobe``. From it: ``forked PID``,
``running``, ``refused ERRNO``, ``stopped``, ``continued``, ``ended WAITSTATUS``,
``probed N WAITSTATUS TEXT``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36  # linux/prctl.h
GONE_S = 5.0
"""How long what was killed may take to be gone; a process that the kernel holds (state D) may never be."""
_TEXT_BYTES = 200
_PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""cdn-run's own business with its supervisor, which would take the program's word for cdn-run's."""

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, and not of init."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_keeper(command: Sequence[str], probe: Sequence[str] | None) -> socket.socket:
    """Fork the keeper of a command, which it does not start yet; returns this side's socket. Before any thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return ours
    try:
        ours.close()
        _Keeper(theirs, command, probe).run()
    except BaseException:  # noqa: BLE001 - nothing may return into the copy of cdn-run that this process is
        traceback.print_exc()
    finally:
        os._exit(0)


def kill_descendants() -> bool:
    """SIGKILL all that lives below this process, which adopts orphans, and reap it; False if something stays."""
    until_s = time.monotonic() + GONE_S
    while time.monotonic() < until_s:
        for pid in descendants(os.getpid()):
            _send(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:  # as orphans are adopted, without children there are no descendants
            return True
        time.sleep(0.005)
    return False


def descendants(pid: int) -> list[int]:
    """Pids of all that lives below a process; looks at every process of the machine."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b") ")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            children.setdefault(parent, []).append(int(name))
    found = children.get(pid, [])
    for child in found:  # grows while it is walked
        found += children.get(child, [])
    return found


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError) as error:
        if isinstance(error, PermissionError):
            print(f"cdn-run: cannot signal pid {pid}: {error.strerror}", file=sys.stderr, flush=True)


class _Keeper:
    def __init__(self, link: socket.socket, command: Sequence[str], probe: Sequence[str] | None) -> None:
        self._link = link
        self._command = list(command)
        self._probe = list(probe or ())
        self._environ = {key: value for key, value in os.environ.items() if key not in _PRIVATE}
        self._pid = 0
        self._go = self._failure = -1
        self._probe_pid, self._probe_number, self._probe_output = 0, "", -1
        self._probe_next = ""
        self._held: list[int] = []
        """The instance's lock: held for as long as something of it may live, so that its successor waits."""

    def run(self) -> None:
        """Until the program has ended, or cdn-run has."""
        os.setsid()
        adopt_orphans()
        _libc.prctl(PR_SET_NAME, b"cdn-keeper", 0, 0, 0)
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(woken, select.POLLIN)
        status: int | None = None
        while status is None:
            for fd, _ in poll.poll():
                if fd == self._link.fileno():
                    if not self._obey():
                        kill_descendants()
                        return
                    if self._failure >= 0:
                        poll.register(self._failure, select.POLLIN)
                elif fd == woken:
                    os.read(woken, 512)
                elif fd == self._failure:
                    poll.unregister(fd)
                    self._started_or_not()
            status = self._reap()
        if self._failure >= 0:
            self._started_or_not()
        kill_descendants()
        self._say(f"ended {status}")

    def _say(self, text: str) -> None:
        try:
            self._link.send(text.encode(errors="replace"))
        except (BrokenPipeError, ConnectionResetError):
            return  # cdn-run has ended: the next look at the socket says so too

    def _obey(self) -> bool:
        """One message; False if there will be no more."""
        try:
            message, fds, _, _ = socket.recv_fds(self._link, 256, 1)
        except ConnectionResetError:
            return False
        match message.decode().split():
            case []:
                return False
            case ["lock"]:
                for fd in fds:
                    os.set_inheritable(fd, False)  # recv_fds of Python 3.11 does not, and drops the flag that would
                self._held += fds
            case ["fork"]:
                self._fork()
            case ["go"]:
                self._release()
            case ["signal", number] if self._pid:
                _send(self._pid, int(number))
            case ["kill"]:
                for pid in descendants(os.getpid()):
                    _send(pid, signal.SIGKILL)
            case ["probe", number]:
                self._start_probe(number)
            case ["unprobe"] if self._probe_pid:
                _send_group(self._probe_pid)
        return True

    def _fork(self) -> None:
        """Fork what will be the program, and hold it before its exec, so that its limits are set before it runs."""
        may_go, self._go = os.pipe()
        self._failure, failed = os.pipe()
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(self._go)
            if os.read(may_go, 1):
                _become(self._command, self._environ, failed, keeper)
            os._exit(0)
        self._pid = pid
        os.close(may_go)
        os.close(failed)
        self._say(f"forked {pid}")

    def _release(self) -> None:
        try:
            os.write(self._go, b"!")
        except BrokenPipeError:  # it was killed before it came to run: its end is about to be told
            return
        finally:
            os.close(self._go)

    def _started_or_not(self) -> None:
        text = os.read(self._failure, 16)
        os.close(self._failure)
        self._failure = -1
        self._say(f"refused {int(text)}" if text else "running")

    def _start_probe(self, number: str) -> None:
        if self._probe_pid:
            self._probe_next = number  # once the last one, which has been killed, is gone
            return
        output, nothing = os.memfd_create("probe"), os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            for fd, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(fd, target)
            _become(self._probe, self._environ, 2, keeper)
        os.close(nothing)
        self._probe_pid, self._probe_number, self._probe_output = pid, number, output

    def _reap(self) -> int | None:
        """Take note of all that has ended or was stopped; the wait status of the program, if it has ended."""
        ended = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):  # by a tracer is not reported here
                if pid == self._pid:
                    self._say("stopped" if os.WIFSTOPPED(status) else "continued")
            elif pid == self._pid:
                ended = status
            elif pid == self._probe_pid:
                text = os.pread(self._probe_output, 1 << 16, 0)[-_TEXT_BYTES:].decode(errors="replace")
                os.close(self._probe_output)
                self._probe_pid = 0
                self._say(f"probed {self._probe_number} {status} {' '.join(text.split())}")
                if self._probe_next:
                    number, self._probe_next = self._probe_next, ""
                    self._start_probe(number)


def _send_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        _send(pid, signal.SIGKILL)  # it has not come to be a group's leader yet, or is gone


def _become(command: Sequence[str], environ: dict[str, str], failed: int, keeper: int) -> None:
    """Exec the command with the signals that it would have had; writes an errno to ``failed`` if that fails."""
    try:
        os.setsid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # it ended before the line above
            os._exit(0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would keep that
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], list(command), environ)
    except OSError as error:
        os.write(failed, b"%d" % (error.errno or errno.EIO))
    finally:
        os._exit(127)
