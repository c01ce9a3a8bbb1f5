"""A service that emits what it is told to, and tells what it has heard."""

from __future__ import annotations

import asyncio
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bus.messages import Event, Reaction, ReactionState, Sighting
from cdn_daemon import Service, run

HEARD: list[dict[str, str | None]] = []


async def emit(request: Request) -> Response:
    """Emits ?n= sightings of ?value=, under ?id= if that is given; answers their ids."""
    query = request.query_params
    ids = [
        service.emit(
            Sighting(value=query["value"], value_type="ipv4-addr", confidence=90),
            f"saw {query['value']}",
            id=query.get("id"),
        )
        for _ in range(int(query.get("n", "1")))
    ]
    return JSONResponse(ids)


async def heard(request: Request) -> Response:
    """All that was heard, in that order."""
    return JSONResponse(HEARD)


app = Starlette(routes=[Route("/emit", emit, methods=["POST"]), Route("/heard", heard)])
service = Service("gossip", app=app, port=0)
FIRST = service.emit(Sighting(value="192.0.2.1", value_type="ipv4-addr", confidence=1), "before anything else runs")


@service.hears(Sighting, back_s=float(os.environ.get("GOSSIP_BACK_S", "0")))
async def saw(event: Event, sighting: Sighting) -> None:
    """Proposes something, as a reaction to a sighting; an event that makes a handler raise, or hang for a moment."""
    HEARD.append({"id": event.id, "kind": event.kind, "cause": event.cause, "value": sighting.value})
    if sighting.value == "raise":
        raise RuntimeError("this is not to be heard")
    if sighting.value == "slow":
        await asyncio.sleep(0.5)
    service.emit(
        Reaction(reaction="r1", state=ReactionState.PROPOSED, action="deny", target=sighting.value),
        f"deny {sighting.value}?",
        cause=event.id,
    )


@service.hears(Reaction)
async def reacted(event: Event, reaction: Reaction) -> None:
    """Remembers it."""
    HEARD.append({"id": event.id, "kind": event.kind, "cause": event.cause, "value": reaction.target})


if __name__ == "__main__":
    run(service)
