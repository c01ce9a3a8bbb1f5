"""What the warden answers over supervisord's XML-RPC, as ``cdn.…``: the way in when ATLAS is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from supervisor.xmlrpc import Faults, RPCError

if TYPE_CHECKING:
    from cdn_daemon.warden.warden import Warden


class WardenNamespace:
    """Public methods are what ``system.listMethods`` shows."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden

    def getNodeStatus(self) -> str:
        """Return the process table with reasons, as JSON of bus.messages.NodeStatus

        @return string json  XML-RPC has no null, which the table needs
        """
        return msgspec.json.encode(self._warden.status()).decode()

    def holdJudgement(self, seconds: float) -> bool:
        """Judge no silent process for so many seconds; 0 ends it. Crashes are still answered by restarts

        @param double seconds  at most a day
        @return boolean result  always True
        """
        if not 0 <= seconds <= 86400:
            raise RPCError(Faults.BAD_ARGUMENTS, f"{seconds} s: it must be 0 to 86400")
        self._warden.hold_judgement(float(seconds))
        return True
