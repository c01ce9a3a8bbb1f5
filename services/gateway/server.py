"""The gateway as an ASGI application, and the feed that tells it where to route."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Mapping

from bus.endpoints import RunDir
from bus.messages import OodaMode
from cdn_daemon.web import Receive, Scope, Send
from services.gateway.balance import Balance, Ledger
from services.gateway.errors import Refusal
from services.gateway.feed import Feed
from services.gateway.ooda import RoutingOptimizer
from services.gateway.proxy import Proxy
from services.gateway.settings import GatewaySettings
from services.gateway.tunnel import Tunnel
from services.gateway.upstream import Pool

SWEEP_S = 5.0


class Gateway:
    """One address in front of every service."""

    def __init__(self, settings: GatewaySettings, run_dir: RunDir) -> None:
        self._pool = Pool(connect_s=settings.connect_s)
        self._ledger = Ledger(time.monotonic)
        self._balance = Balance(self._ledger, in_flight_max=settings.in_flight_max, draw=random.random)
        self._proxy = Proxy(settings, self._pool, self._balance, self._ledger)
        self._tunnel = Tunnel(settings, self._balance, self._ledger)
        self._feed = Feed(run_dir.feed, run_dir.state(settings.instance) / "routes.json", settings.hidden)
        self._refused = 0
        self.optimizer = RoutingOptimizer(self._ledger, self._balance, lambda: self._feed.table)
        self._balance.is_adaptive = lambda: self.optimizer.mode is OodaMode.ON

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        table = self._feed.table
        try:
            if scope["type"] == "http":
                await self._proxy.forward(table, scope, receive, send)
            elif scope["type"] == "websocket":
                await self._tunnel.forward(table, scope, receive, send)
            else:
                raise NotImplementedError(scope["type"])  # so ASGI has it said that there is no lifespan
        except Refusal as refusal:
            self._refused += 1
            kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
            await send({"type": f"{kind}.start", "status": refusal.detail.status, "headers": refusal.headers()})
            body = b"" if scope.get("method") == "HEAD" else refusal.body()
            await send({"type": f"{kind}.body", "body": body})

    async def background(self) -> None:
        """Follow the feed until cancelled; raises if that cannot go on."""
        self._feed.recall()
        following = asyncio.ensure_future(asyncio.to_thread(self._feed.follow))
        try:
            while not following.done():
                await asyncio.wait((following,), timeout=SWEEP_S)
                self._pool.sweep()
            following.result()
            raise RuntimeError("the feed's thread ended")
        finally:
            self._feed.stop()
            self._pool.sweep(everything=True)

    def numbers(self) -> Mapping[str, float]:
        """What the gateway has done, in all and for each instance; named for Prometheus."""
        table = self._feed.table
        numbers = {
            "gateway_services": float(len(table.routes)),
            "gateway_targets": float(sum(len(targets) for targets in table.routes.values())),
            "gateway_refused_total": float(self._refused),
            "gateway_clients_gone_total": float(self._proxy.clients_gone),
            "gateway_retries_total": float(self._proxy.retries),
            "gateway_retries_refused_total": float(self._proxy.retries_refused),
            "gateway_shed_total": float(self._balance.shed),
            "gateway_idle_connections": float(self._pool.idle),
            "gateway_feed_dropped_total": float(self._feed.dropped),
            "gateway_saves_failed_total": float(self._feed.saves_failed),
        }
        if table.spoke_s is not None:
            numbers["gateway_feed_silent_seconds"] = time.monotonic() - table.spoke_s
        return {**numbers, **self._ledger.numbers()}


def can_connect() -> None:
    """Raises OSError if this process has no file descriptor left for one more connection."""
    socket.socket().close()
