"""What the warden answers over supervisord's XML-RPC, as ``cdn.…``: the way in when ATLAS is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec
from supervisor.xmlrpc import Faults, RPCError

from cdn_daemon.warden.restarts import OPERATOR
from cdn_daemon.warden.steward import Refused, Steward

if TYPE_CHECKING:
    from cdn_daemon.warden.warden import Warden

T = TypeVar("T")


class WardenNamespace:
    """Public methods are what ``system.listMethods`` shows."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden

    def getNodeStatus(self) -> str:
        """Return the process table with reasons, as JSON of bus.messages.NodeStatus

        @return string json  XML-RPC has no null, which the table needs
        """
        return msgspec.json.encode(self._warden.status()).decode()

    def disableProcess(self, name: str) -> str:
        """Stop a process, and refuse to start it until it is enabled; also after a restart of supervisord

        @param string name  as in supervisorctl status
        @return string note  what else there is to say; mostly nothing
        """
        return self._ask(lambda steward: steward.disable(name, OPERATOR))

    def enableProcess(self, name: str) -> str:
        """Let a process be started again, and start it if supervisord.conf says autostart

        @param string name  as in supervisorctl status
        @return string note  what else there is to say; mostly nothing
        """
        was_disabled = bool(self._ask(lambda steward: steward.refusal(name)))
        note = self._ask(lambda steward: steward.enable(name, OPERATOR))
        if was_disabled:
            self._warden.start_enabled(name)
        return note

    def forgetFailures(self, name: str) -> str:
        """Count a process's failures anew; FATAL becomes STOPPED

        @param string name  as in supervisorctl status
        @return string note  what else there is to say; mostly nothing
        """
        return self._ask(lambda steward: steward.forget_failures(name, OPERATOR))

    def setMaintenance(self, name: str, on: bool, seconds: float) -> str:
        """Do not judge a process, or judge it again. It is still started again if it ends

        @param string name  as in supervisorctl status
        @param boolean on  whether maintenance begins or ends
        @param double seconds  after which it ends by itself; 0: until it is ended
        @return string note  what else there is to say; mostly nothing
        """
        on, for_s = _is(on, bool), _is(seconds, int, float) or None
        return self._ask(lambda steward: steward.set_maintenance(name, on=on, for_s=for_s, by=OPERATOR))

    def scaleProcess(self, name: str, instances: int) -> str:
        """Run so many instances of a program: NAME, NAME-2, NAME-3; does not wait for them

        @param string name  of the program
        @param int instances  1 to 64
        @return string note  what else there is to say; mostly nothing
        """
        many = _is(instances, int)
        return self._ask(lambda steward: steward.scale(name, many, OPERATOR))

    def _ask(self, ask: Callable[[Steward], str]) -> str:
        if not self._warden.is_up():
            raise RPCError(Faults.SHUTDOWN_STATE)
        try:
            return ask(self._warden.steward)
        except Refused as refused:
            raise RPCError(Faults.FAILED, str(refused)) from refused


def _is(value: T, *kinds: type) -> T:
    """The value, if the caller sent it as what it has to be; else the fault that XML-RPC has for that."""
    if type(value) not in kinds:
        raise RPCError(
            Faults.INCORRECT_PARAMETERS, f"{value!r:.50} is no {' or '.join(each.__name__ for each in kinds)}"
        )
    return value
