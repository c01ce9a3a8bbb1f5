"""A service that tells what others would: POST /tell emits a sighting, a reaction and a block."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bus.messages import Blocked, Reaction, ReactionState, Sighting
from cdn_daemon import Service, run


async def tell(_: Request) -> Response:
    """One after the other, each the cause of the next."""
    sighting = Sighting(value="203.0.113.7", value_type="ipv4-addr", confidence=80, techniques=("T1110",))
    first = service.emit(sighting, "203.0.113.7 was seen")
    reaction = Reaction(reaction="r1", state=ReactionState.EXECUTED, action="deny", target="203.0.113.7")
    second = service.emit(reaction, "deny 203.0.113.7: executed", cause=first)
    service.emit(Blocked(network="203.0.113.7/32", action="deny"), "203.0.113.7/32 is refused", cause=second)
    return JSONResponse("told")


app = Starlette(routes=[Route("/tell", tell, methods=["POST"])])
service = Service("teller", app=app, port=0)

if __name__ == "__main__":
    run(service)
