"""The loop: a neighbourhood that offends from several addresses is banned as one, or a person is asked to.

Single addresses are the playbooks' business, at once and without the loop. What a neighbourhood does shows only
over many addresses and some time, and hits those who live there too: so it is one at a time, the rate of what
comes from it is measured afterwards, and a ban that did not help is taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from cdn_daemon.ooda import OodaLoop
from services.threat_reaction.desk import Picture
from services.threat_reaction.memory import Neighbourhood

OFFENDERS_MIN = 3
POINTS_MIN = 6.0
SHOWN_MAX = 10


class Observation(Struct, frozen=True, kw_only=True):
    """What is going on."""

    at_s: float
    sightings_per_s: float
    reoffences: int
    """Addresses that came back within a day of their ban, since the process began."""
    overturned: int
    proposals: int
    contain_s: float | None
    bans: int
    neighbourhoods: tuple[Neighbourhood, ...]
    may: str
    """``ban``, ``ask`` or ``no``."""


class Orientation(Struct, frozen=True, kw_only=True):
    """Who offends, the worst first, and who would be hit as well."""

    offending: tuple[Neighbourhood, ...]
    spared: tuple[Neighbourhood, ...]
    """Would be, but somebody there does well."""
    rates: dict[str, float]
    may: str


class BanPrefix(Struct, frozen=True, kw_only=True):
    """The neighbourhood is banned as one."""

    prefix: str


class AskForPrefix(Struct, frozen=True, kw_only=True):
    """A person is asked whether it is to be."""

    prefix: str


Decision = BanPrefix | AskForPrefix


class Hand(Protocol):
    """What carries decisions out; blocks."""

    def contain(self, prefix: str) -> None:
        """Ban it, or ask."""

    def release(self, prefix: str) -> None:
        """Take that back."""


def orient(observation: Observation, is_handled: Callable[[str], bool]) -> Orientation:
    """Which neighbourhoods have several offenders, and nobody who does well."""
    several = [
        one
        for one in observation.neighbourhoods
        if one.offenders >= OFFENDERS_MIN and one.points >= POINTS_MIN and not is_handled(one.prefix)
    ]
    several.sort(key=lambda one: (-one.offenders, -one.points, one.prefix))
    return Orientation(
        offending=tuple(one for one in several if not one.good)[:SHOWN_MAX],
        spared=tuple(one for one in several if one.good)[:SHOWN_MAX],
        rates={one.prefix: one.rate_per_s for one in observation.neighbourhoods if one.rate_per_s},
        may=observation.may,
    )


class PrefixBanner(OodaLoop[Observation, Orientation, Decision]):
    """Looks every second, and judges what it did after half a minute."""

    period_s = 1.0
    settle_s = 30.0
    min_gain = 0.1
    hold_off_s = 600.0

    def __init__(
        self,
        look: Callable[[], Picture | None],
        may: Callable[[], str],
        is_handled: Callable[[str], bool],
        hand: Hand,
    ) -> None:
        self._look = look
        self._may = may
        self._is_handled = is_handled
        self._hand = hand
        self._before: Picture | None = None

    def observe(self) -> Observation | None:
        """The desk's last picture; None while nothing has happened since the one before, and nothing settles."""
        picture, before = self._look(), self._before
        if picture is None or (before is not None and picture.at_s <= before.at_s):
            return None
        self._before = picture
        if not picture.neighbourhoods and self._settling is None:
            return None
        passed_s = picture.at_s - before.at_s if before is not None else 1.0
        seen = picture.sightings - (before.sightings if before is not None else picture.sightings)
        return Observation(
            at_s=picture.at_s,
            sightings_per_s=round(seen / passed_s, 3),
            reoffences=picture.reoffences,
            overturned=picture.overturned,
            proposals=picture.proposals,
            contain_s=picture.contain_s,
            bans=picture.bans,
            neighbourhoods=picture.neighbourhoods,
            may=self._may(),
        )

    def orient(self, observation: Observation) -> Orientation:
        """Who offends."""
        return orient(observation, self._is_handled)

    def decide(self, picture: Orientation) -> Decision | None:
        """The worst that is not held back; where somebody does well, and where nothing stands approved, a person."""
        for one in picture.offending if picture.may != "no" else ():
            decision: Decision = (
                BanPrefix(prefix=one.prefix) if picture.may == "ban" else AskForPrefix(prefix=one.prefix)
            )
            if decision not in self.held:
                return decision
        return None

    def cost(self, picture: Orientation, decision: Decision) -> float | None:
        """Sightings per second from there. A question costs nothing, and changes nothing by itself."""
        return picture.rates.get(decision.prefix, 0.0) if isinstance(decision, BanPrefix) else 0.0

    def act(self, decision: Decision) -> None:
        """Ban, or ask."""
        self._hand.contain(decision.prefix)

    def undo(self, decision: Decision) -> None:
        """Take it back."""
        self._hand.release(decision.prefix)
