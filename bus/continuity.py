"""Whether something that ATLAS has published may have been missed: its own statuses, on the same feed, tell. Pure."""

from __future__ import annotations

from bus.messages import DaemonStatus
from bus.topics import STATUS

WITNESS = f"{STATUS}atlas/"
"""To be subscribed to after what is not to be missed: it comes with every connection, and once a second."""


class Continuity:
    """Told of each of ATLAS's statuses; who has missed something asks ATLAS, and says so by ``mend``."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def is_broken(self, status: DaemonStatus) -> bool:
        """Whether this is another ATLAS than before, one was left out, or what was missed has not been made up for."""
        said = (status.incarnation, status.seq)
        last = self._last
        if last is None or said[0] != last[0] or said[1] > last[1] + 1:
            return True
        self._last = max(last, said)
        return False

    def mend(self, status: DaemonStatus) -> None:
        """All that there was up to this status is known now."""
        self._last = (status.incarnation, status.seq)
