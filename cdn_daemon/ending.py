"""How a process ends: the signals that ask for it, ending as another process did, and ending of one of its threads."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
from typing import NoReturn

from cdn_daemon.lifecycle import ExitCode

log = logging.getLogger(__name__)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_as(wait_status: int) -> NoReturn:
    """End this process now with that exit code, or by that signal, without a core file; any thread.

    A signal that does not end it (none should) becomes 128 + its number, as in a shell.
    """
    if not os.WIFSIGNALED(wait_status):
        os._exit(os.WEXITSTATUS(wait_status))
    number = os.WTERMSIG(wait_status)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    import ctypes  # here, as hardly any process ends so

    # signal.signal() is for the main thread only, and this may be the daemon's.
    ctypes.CDLL(None).signal(number, None)
    os.kill(os.getpid(), number)
    signal.sigtimedwait(set(), 1.0)
    os._exit(128 + number)


def end_of_thread(what: str) -> NoReturn:
    """End this process at once, as a bug: one of its threads has ended by the exception that is being handled."""
    log.critical("%s died; the process goes with it", what, exc_info=True)
    logging.shutdown()
    os._exit(ExitCode.BUG)


def in_words(wait_status: int) -> str:
    """``exit code 3``, ``killed by SIGSEGV``."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:  # a real-time signal has no name
            return f"killed by signal {number}"
    return f"exit code {os.WEXITSTATUS(wait_status)}"
