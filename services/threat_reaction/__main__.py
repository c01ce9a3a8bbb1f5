"""Threat reaction: what is done about what was seen, by whose word, and for how long."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from bus.messages import Event, Reaction, ReactionState, Sighting
from cdn_daemon import ConfigurationError, Service, run
from cdn_daemon.api import RefusedError, Token
from cdn_daemon.tokens import TokenError
from services.threat_reaction.desk import Desk, Told
from services.threat_reaction.gateways import Gateways
from services.threat_reaction.judgement import Sighted
from services.threat_reaction.networks import BadNetworkError, read_address
from services.threat_reaction.ooda import PrefixBanner
from services.threat_reaction.server import Server, make_app
from services.threat_reaction.store import StoreError

NAME = "cdn-threat-reaction"

log = logging.getLogger(__name__)
run_dir = default_run_dir()
desk = Desk(run_dir.state(NAME) / "reactions.db")
gateways = Gateways(
    run_dir.path,
    run_dir.feed,
    clock=desk.clock,
    wanted=lambda: desk.bans,
    lifted=lambda: desk.lifted,
    confirm=desk.confirm,
    keep=desk.keep_gateway,
)
server = Server(desk, gateways, Token(run_dir.path / f"{NAME}.token"))


class Hand:
    """Carries out what the loop decides."""

    def contain(self, prefix: str) -> None:
        """Ban the prefix, or ask."""
        desk.contain_prefix(prefix).result()

    def release(self, prefix: str) -> None:
        """Take that back."""
        desk.release_prefix(prefix).result()


unusable: Exception | None = None
is_opened = False


def opened() -> None:
    """Before anybody is served."""
    global is_opened
    try:
        open_all()
    finally:
        is_opened = True


def open_all() -> None:
    """What cannot be opened is left in unusable."""
    global unusable
    if os.environ.get("CDN_INSTANCE", NAME) not in ("", NAME):
        unusable = ConfigurationError(f"cannot run a second {NAME}: two would decide against each other; run one")
        return
    try:
        server.token.arm()
        desk.open()
        known = desk.read(lambda db: dict(db.execute("SELECT instance, address FROM gateways").fetchall()))
    except (StoreError, TokenError) as error:
        unusable = error
        return
    gateways.start(known)


def closed() -> None:
    """Once nobody is served any more."""
    gateways.stop()
    desk.close()


async def background() -> None:
    """Ends the process where it could not do its work."""
    while not is_opened:
        await asyncio.sleep(0.02)
    if unusable is not None:
        raise ConfigurationError(str(unusable))
    while True:
        await asyncio.sleep(1.0)
        if not gateways.is_alive():
            raise RuntimeError("a thread that talks to the gateways has ended")


service = Service(
    NAME,
    app=make_app(server, opened, closed),
    port=18201,
    ooda=PrefixBanner(
        lambda: desk.picture,
        desk.may_contain_prefixes,
        lambda prefix: prefix in desk.neighbourhoods_handled,
        Hand(),
    ),
    background=background,
)


def tell(told: Told) -> None:
    """Tell the bus, and whoever watches."""
    reaction = told.reaction
    state = ReactionState.EXPIRED if reaction.state == "ended" else ReactionState(reaction.state)
    target = ", ".join(reaction.networks[:4]) or reaction.address
    text = f"{reaction.playbook}: {', '.join(reaction.verbs)} {target}: {reaction.state}"
    if reaction.by:
        text += f" by {reaction.by}"
    if reaction.why:
        text += f" ({reaction.why})"
    facts = Reaction(
        reaction=reaction.id,
        state=state,
        playbook=reaction.playbook,
        action={"ban": "deny", "throttle": "deny"}.get(reaction.kind, "investigate"),
        target=target,
        until_s=reaction.until_s,
        by=reaction.by,
    )
    service.emit(facts, text, cause=told.cause, id=told.id)
    server.watchers.tell(told)


desk.tell = tell
desk.changed = gateways.wake
desk.own_addresses = gateways.addresses


@service.hears(Sighting, back_s=600)
async def sighted(event: Event, facts: Sighting) -> None:
    """What another service has seen of an address."""
    if facts.value_type not in ("ipv4-addr", "ipv6-addr"):
        return
    try:
        address = read_address(facts.value)
    except BadNetworkError:
        log.info("passed over a sighting of what is no single address: %s", facts.value[:100])
        return
    now_s = desk.clock()
    one = Sighted(
        address=address,
        kind="indicator",
        at_s=min(now_s, facts.seen_s if facts.seen_s is not None else event.time_s),
        count=max(1, min(1000, facts.count)),
        confidence=facts.confidence,
        source=facts.seen_by or event.source,
        cause=event.id,
    )
    while True:
        try:
            await asyncio.wrap_future(desk.sight([(one, f"event:{event.id}")]))
            return
        except RefusedError as error:
            if error.reason.status != 503:
                raise
            await asyncio.sleep(0.2)


@service.check(every_s=5, timeout_s=2, fails_after=3)
def desk_answers() -> None:
    """Unhealthy while the database cannot be read."""
    desk.answers()


@service.check(every_s=5, timeout_s=1, fails_after=None)
def can_be_written() -> str | None:
    """Degraded while nothing can be written: bans in force stay so."""
    return desk.broken or None


@service.check(every_s=1, timeout_s=1, fails_after=None)
def gateways_obey() -> str | None:
    """Degraded while there are bans that a gateway does not carry out."""
    return "; ".join(gateways.failing()) or None if desk.bans else None


@service.metrics
def measured() -> Mapping[str, float]:
    """Sightings, reactions, bans, and how quickly."""
    picture = desk.picture
    numbers = {
        "reaction_sightings_total": float(desk.counts["sightings"]),
        "reaction_leaks_total": float(desk.counts["leaks"]),
        "reaction_reoffences_total": float(desk.counts["reoffences"]),
        "reaction_overturned_total": float(desk.counts["overturned"]),
        "reaction_dropped_total": float(desk.counts["reactions_dropped"]),
        "reaction_commits_total": float(desk.commits),
        "reaction_bans": float(len(desk.bans)),
        "reaction_watchers": float(len(server.watchers)),
    }
    for name, count in desk.counts.copy().items():
        if name.startswith("reactions_") and name != "reactions_dropped":
            numbers[f'reaction_states_total{{state="{name[10:]}"}}'] = float(count)
    for (action, status), count in gateways.orders.copy().items():
        numbers[f'reaction_openc2_total{{action="{action}",status="{status}"}}'] = float(count)
    if picture is not None:
        numbers["reaction_proposals"] = float(picture.proposals)
        if picture.contain_s is not None:
            numbers["reaction_contain_seconds"] = picture.contain_s
    return numbers


if __name__ == "__main__":
    run(service)
