"""What the warden answers over supervisord's XML-RPC, as ``cdn.…``: the way in when ATLAS is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

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
