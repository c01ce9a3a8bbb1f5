"""cdnctl's verbs inside supervisorctl, by supervisor's own extension point.

In supervisord.conf::

    [ctlplugin:cdn]
    supervisor.ctl_factory = cli.ctlplugin:make_ctlplugin

``supervisorctl why web`` is ``cdnctl why web`` for the fleet that supervisorctl speaks to, and ends with the same exit
code. supervisorctl's own verbs stay as they are. Nothing of cdnctl is imported before one of these is used.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

_GENERIC = 1  # supervisor/supervisorctl.py, LSBInitExitStatuses


class _Verb(NamedTuple):
    does: tuple[str, ...]
    """cdnctl's words, before what the operator adds."""
    help: str


_VERBS = {
    "why": _Verb(("why",), "why <name>...\t\tWhat happened to it, and what to do"),
    "ready": _Verb(("wait", "--for", "ready"), "ready <name>...\t\tWait until it is ready; --timeout 5s, else 30 s"),
    "enable": _Verb(("enable",), "enable <name>...\tLet it be started again"),
    "disable": _Verb(("disable",), "disable <name>...\tStop it, and keep it down"),
    "maintenance": _Verb(
        ("maintenance",), "maintenance <name>... --on|--off\tDo not judge it while you work on it; --for 1h"
    ),
}


class CtlPlugin:
    """Has a ``do_VERB`` for each, which is what supervisorctl looks for."""

    name = "cdn"

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        for word, verb in _VERBS.items():
            setattr(self, f"do_{word}", partial(self._run, verb))
            for other in controller.options.plugins:  # `help why` asks all, and all others would say that there is none
                setattr(other, f"help_{word}", partial(controller.output, verb.help))

    def do_help(self, arg: str) -> None:
        """The list; of a single verb supervisorctl's own plugin tells already."""
        if not arg:
            self._controller.print_topics("cdn commands (type help <topic>):", sorted(_VERBS), 15, 80)

    def _run(self, verb: _Verb, arg: str) -> None:
        from cli.main import main

        url = self._controller.options.serverurl
        if not url.startswith("unix://"):
            self._refuse(f"it speaks to {url}, and cdnctl to a run directory: use cdnctl --run-dir DIR {verb.does[0]}")
            return
        try:
            words = shlex.split(arg)
        except ValueError as error:
            self._refuse(str(error))
            return
        # group:name is supervisor's word; cdnctl's names have no colon
        words = [word if word.startswith("-") else word.rpartition(":")[2] for word in words]
        code = main(["--run-dir", str(Path(url.removeprefix("unix://")).parent), *verb.does, *words])
        if code:
            self._controller.exitstatus = int(code)

    def _refuse(self, why: str) -> None:
        self._controller.output(f"cannot do that from this supervisorctl: {why}")
        self._controller.exitstatus = _GENERIC


def make_ctlplugin(controller: Any) -> CtlPlugin:
    """supervisor's extension point; called once by each supervisorctl."""
    return CtlPlugin(controller)
