"""The gateway as an ASGI application, and the feed that tells it where to route."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from bus.endpoints import RunDir
from bus.messages import OodaMode
from cdn_daemon.service import ConfigurationError
from cdn_daemon.tokens import TokenError
from cdn_daemon.web import Receive, Scope, Send
from services.gateway.admission import Admission
from services.gateway.balance import Balance, Ledger
from services.gateway.blocklist import Blocklist
from services.gateway.blockstore import BlockStore, StoreError
from services.gateway.budget import Rates
from services.gateway.consumer import PATHS, Consumer, Told
from services.gateway.errors import Refusal
from services.gateway.feed import Feed
from services.gateway.ooda import RoutingOptimizer
from services.gateway.proxy import Proxy
from services.gateway.settings import GatewaySettings
from services.gateway.tunnel import Tunnel
from services.gateway.upstream import Pool

log = logging.getLogger(__name__)

SWEEP_S = 5.0


class Gateway:
    """One address in front of every service."""

    def __init__(self, settings: GatewaySettings, run_dir: RunDir) -> None:
        self._pool = Pool(connect_s=settings.connect_s)
        self._ledger = Ledger(time.monotonic)
        self._balance = Balance(self._ledger, in_flight_max=settings.in_flight_max, draw=random.random)
        self._proxy = Proxy(settings, self._pool, self._balance, self._ledger)
        self._tunnel = Tunnel(settings, self._balance, self._ledger)
        state = run_dir.state(settings.instance)
        self._store = BlockStore(state / "blocks.db", Blocklist(may_block_loopback=settings.may_block_loopback))
        rate_per_s = settings.client_rate_per_s
        self._admission = Admission(self._store.rules, Rates(rate_per_s, settings.client_burst) if rate_per_s else None)
        token = run_dir.path / f"{settings.instance}.openc2.token"
        self._consumer = Consumer(self._store, token, self._admission.cut)
        self._opened = asyncio.Event()
        self._unusable: Exception | None = None
        self._sweeps_failed = 0
        self._feed = Feed(run_dir.feed, state / "routes.json", settings.hidden)
        self._refused = 0
        self.optimizer = RoutingOptimizer(self._ledger, self._balance, lambda: self._feed.table)
        self._balance.is_adaptive = lambda: self.optimizer.mode is OodaMode.ON

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        try:
            if self._unusable is not None:
                raise Refusal(503, f"cannot serve: {self._unusable}")
            client = self._admission.check(scope)
            if scope["raw_path"] in PATHS:
                await self._consumer.answer(scope, receive, send)
                return
            self._admission.spend(client)
            table = self._feed.table
            has_begun = False

            async def answer(message: MutableMapping[str, Any]) -> None:
                nonlocal has_begun
                has_begun = True
                await send(message)

            with self._admission.inside(client, lambda: has_begun):
                if scope["type"] == "http":
                    await self._proxy.forward(table, scope, receive, answer)
                else:
                    await self._tunnel.forward(table, scope, receive, answer)
        except Refusal as refusal:
            self._refused += 1
            kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
            await send({"type": f"{kind}.start", "status": refusal.detail.status, "headers": refusal.headers()})
            body = b"" if scope.get("method") == "HEAD" else refusal.body()
            await send({"type": f"{kind}.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open the block-list before anybody is served: now no earlier process has it any more."""
        await receive()
        try:
            await asyncio.to_thread(self._store.open)
            self._consumer.arm()
            await asyncio.to_thread(self._consumer.announce_again)
        except (StoreError, TokenError) as error:
            self._unusable = error
        self._opened.set()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._unusable is None:
            await asyncio.to_thread(self._store.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def background(self) -> None:
        """Follow the feed until cancelled; raises if that cannot go on."""
        await self._opened.wait()
        if self._unusable is not None:
            raise ConfigurationError(str(self._unusable))
        self._feed.recall()
        following = asyncio.ensure_future(asyncio.to_thread(self._feed.follow))
        try:
            while not following.done():
                await asyncio.wait((following,), timeout=SWEEP_S)
                self._pool.sweep()
                self._admission.cut()  # a block may have begun by its start_time
                await asyncio.to_thread(self._forget_ended)
            following.result()
            raise RuntimeError("the feed's thread ended")
        finally:
            self._feed.stop()
            self._pool.sweep(everything=True)

    def announce_by(self, emit: Callable[[Told], object]) -> None:
        """From now on whatever becomes of the block-list is told by this."""
        self._consumer.announce = emit

    def can_be_told(self) -> None:
        """Raises StoreError while no new block can be kept."""
        if self._store.broken:
            raise StoreError(self._store.broken)

    def _forget_ended(self) -> None:
        try:
            if ended := self._store.sweep():
                log.info("%d rules of the block-list are over", ended)
            self._sweeps_failed = 0
        except StoreError as error:
            if not self._sweeps_failed:
                log.warning("%s", error)
            self._sweeps_failed += 1

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
        rules, admission = self._store.rules, self._admission
        numbers |= {
            "gateway_blocklist_rules": float(len(rules)),
            "gateway_blocked_total": float(admission.blocked),
            "gateway_cut_off_total": float(admission.cut_off),
            "gateway_rate_limited_total": float(admission.limited),
        }
        for (action, status), count in self._consumer.commands.copy().items():
            numbers[f'gateway_openc2_commands_total{{action="{action}",status="{status}"}}'] = count
        if table.spoke_s is not None:
            numbers["gateway_feed_silent_seconds"] = time.monotonic() - table.spoke_s
        return {**numbers, **self._ledger.numbers()}


def can_connect() -> None:
    """Raises OSError if this process has no file descriptor left for one more connection."""
    socket.socket().close()
