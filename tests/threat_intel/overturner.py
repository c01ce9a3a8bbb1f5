"""A service that takes bans back: POST /overturn?target=… emits what threat-reaction would."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bus.messages import Event, Reaction, ReactionState, Sighting
from cdn_daemon import Service, run

SEEN: list[dict[str, object]] = []


async def overturn(request: Request) -> Response:
    """Emits it; answers its id."""
    target = request.query_params["target"]
    facts = Reaction(reaction="r1", state=ReactionState.ROLLED_BACK, action="deny", target=target, by="ada")
    return JSONResponse(service.emit(facts, f"{target} is free again"))


async def seen(request: Request) -> Response:
    """All sightings that were heard."""
    return JSONResponse(SEEN)


app = Starlette(routes=[Route("/overturn", overturn, methods=["POST"]), Route("/seen", seen)])
service = Service("overturner", app=app, port=0)


@service.hears(Sighting, back_s=60)
async def saw(event: Event, facts: Sighting) -> None:
    """Remembers it."""
    SEEN.append({"id": event.id, "source": event.source, "cause": event.cause, "value": facts.value})


if __name__ == "__main__":
    run(service)
