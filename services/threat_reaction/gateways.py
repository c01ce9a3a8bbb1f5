"""Tells every gateway what is to be refused, and goes on until each of them does it.

What is wanted is compared with what each gateway says it does: at the start, every CHECK_S, and whenever a gateway has
come back. In between only what has changed is told, at once. Gateways are found by the statuses that they publish;
where each was is kept on disk, and before any was ever heard it is looked for on its default port.
"""

from __future__ import annotations

import http.client
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from msgspec.structs import replace

from bus.messages import DaemonStatus, LifecyclePhase
from bus.subscriber import Subscriber
from bus.topics import STATUS
from services.threat_reaction import openc2
from services.threat_reaction.memory import Ban
from services.threat_reaction.networks import Network
from services.threat_reaction.openc2 import BadAnswerError, Deny, Order, Rule
from services.threat_reaction.records import Lifted

log = logging.getLogger(__name__)

SERVICE = "gateway-primary"
DEFAULT_ADDRESS = "http://127.0.0.1:18600"
ANSWER_S = 3.0
CHECK_S = 30.0
BACKOFF_S, BACKOFF_MAX_S = 0.2, 5.0
HEAR_S = 0.5
ANSWER_BYTES = 4 << 20
FORGET_S = 3600.0
"""An instance that has not answered for so long is no more; the first one is always waited for."""
AT_ONCE = 200
"""Orders to one gateway before the next one's turn."""


class GatewayError(Exception):
    """A gateway did not answer as one; the text says how."""


@dataclass
class Gateway:
    """One instance, and what it is known to do."""

    instance: str
    address: str
    is_known: bool = True
    """It was heard, now or by an earlier process; not only looked for where it would be."""
    incarnation: int = 0
    rules: dict[Network, Rule] = field(default_factory=dict)
    checked_s: float = -1e9
    """Monotonic."""
    next_s: float = 0.0
    backoff_s: float = BACKOFF_S
    failing_s: float = 0.0
    """Since when it does not answer; 0: it does."""
    error: str = "not asked yet"
    refused: dict[Network, str] = field(default_factory=dict)
    """What it will not do, and why; not asked again before it is another process."""
    no_cause: bool = False
    """It knows no cause in a command."""
    connection: http.client.HTTPConnection | None = None


class Gateways:
    """All of them. Two threads: one hears where they are, one tells them."""

    def __init__(
        self,
        run_dir: Path,
        feed: str,
        *,
        clock: Callable[[], float],
        wanted: Callable[[], Mapping[Network, Ban]],
        lifted: Callable[[], tuple[Lifted, ...]],
        confirm: Callable[[Ban, str, str], object],
        keep: Callable[[str, str], object],
    ) -> None:
        self._run_dir = run_dir
        self._endpoint = feed
        self._clock = clock
        self._wanted = wanted
        self._lifted = lifted
        self._confirm = confirm
        self._keep = keep
        self._lock = threading.Lock()
        self._gateways: dict[str, Gateway] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.orders: Counter[tuple[str, str]] = Counter()
        """By action and outcome."""

    def start(self, known: Mapping[str, str]) -> None:
        """Begin; ``known`` is where they were before."""
        for instance, address in known.items():
            if _is_address(address):
                self._gateways[instance] = Gateway(instance=instance, address=address)
        if SERVICE not in self._gateways:
            self._gateways[SERVICE] = Gateway(instance=SERVICE, address=DEFAULT_ADDRESS, is_known=False)
        for name, run in (("reaction-feed", self._hear), ("reaction-openc2", self._tell)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End both threads."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()

    def is_alive(self) -> bool:
        """Whether both threads run."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def wake(self) -> None:
        """What is wanted has changed; from any thread."""
        self._wake.set()

    def addresses(self) -> list[str]:
        """The gateways' own hosts: never to be blocked."""
        with self._lock:
            hosts = [urlsplit(gateway.address).hostname for gateway in self._gateways.values()]
        return [host for host in hosts if host]

    def shown(self) -> dict[str, dict[str, object]]:
        """For people."""
        with self._lock:
            return {
                gateway.instance: {
                    "address": gateway.address,
                    "error": gateway.error,
                    "denied": sum(rule.ours for rule in gateway.rules.copy().values()),
                    "refused": {str(network): why for network, why in list(gateway.refused.items())[:100]},
                }
                for gateway in self._gateways.values()
            }

    def failing(self) -> list[str]:
        """Those that do not do what they are told, and why."""
        with self._lock:
            return [f"{one.instance}: {one.error}" for one in self._gateways.values() if one.is_known and one.error]

    def does(self, network: Network) -> dict[str, str]:
        """What each gateway does about a wanted ban: ``denied``, ``slowed``, or why neither."""
        now_s, found = self._clock(), {}
        with self._lock:
            for gateway in self._gateways.values():
                rule = gateway.rules.get(network)
                if rule is not None and not rule.allow and rule.until_s > now_s:
                    found[gateway.instance] = "denied" if rule.rate_per_s is None else "slowed"
                else:
                    found[gateway.instance] = gateway.refused.get(network) or gateway.error or "waiting"
        return found

    # -- where they are -------------------------------------------------------------------------------------

    def _hear(self) -> None:
        subscriber = Subscriber(self._endpoint, (f"{STATUS}{SERVICE}",))
        try:
            while not self._stop.is_set():
                status = subscriber.receive(HEAR_S)
                if isinstance(status, DaemonStatus) and status.service == SERVICE and status.address:
                    self._heard(status)
        finally:
            subscriber.close()

    def _heard(self, status: DaemonStatus) -> None:
        with self._lock:
            held = self._gateways.get(status.instance)
            if status.phase is LifecyclePhase.STOPPED or not _is_address(status.address or ""):
                return
            is_new = held is None or held.address != status.address
            if not is_new and held is not None and held.incarnation == status.incarnation:
                return
            assert status.address is not None
            if held is None:
                held = self._gateways[status.instance] = Gateway(instance=status.instance, address=status.address)
            held.is_known = True
            held.address, held.incarnation = status.address, status.incarnation
            held.checked_s, held.next_s, held.backoff_s = -1e9, 0.0, BACKOFF_S
            held.no_cause = False
            held.refused.clear()
        if is_new:
            self._keep(status.instance, status.address)
        self._wake.set()

    # -- telling them ---------------------------------------------------------------------------------------

    def _tell(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            with self._lock:
                gateways = list(self._gateways.values())
            waits_s = [CHECK_S]
            for gateway in gateways:
                now_s = time.monotonic()
                if gateway.next_s <= now_s:
                    try:
                        has_more = self._reconcile(gateway, now_s)
                        gateway.error, gateway.backoff_s = "", BACKOFF_S
                        gateway.next_s = gateway.failing_s = 0.0
                        waits_s.append(0.0 if has_more else max(0.0, gateway.checked_s + CHECK_S - now_s))
                    except GatewayError as error:
                        self._fail(gateway, str(error))
                        waits_s.append(gateway.next_s - now_s)
                    if self._stop.is_set():
                        return
                else:
                    waits_s.append(gateway.next_s - now_s)
            self._wake.wait(min(waits_s))

    def _fail(self, gateway: Gateway, error: str) -> None:
        if error != gateway.error:
            log.warning("%s: %s", gateway.instance, error)
        if not gateway.failing_s:
            gateway.failing_s = time.monotonic()
        elif time.monotonic() - gateway.failing_s > FORGET_S and gateway.instance != SERVICE:
            with self._lock:
                del self._gateways[gateway.instance]
            self._keep(gateway.instance, "")
        gateway.error = error
        gateway.checked_s = -1e9
        gateway.next_s = time.monotonic() + gateway.backoff_s
        gateway.backoff_s = min(BACKOFF_MAX_S, gateway.backoff_s * 2)
        if gateway.connection is not None:
            gateway.connection.close()
            gateway.connection = None

    def _reconcile(self, gateway: Gateway, now_s: float) -> bool:
        """Tell the gateway what it does not do yet; return whether there is more. Raises GatewayError."""
        if now_s - gateway.checked_s >= CHECK_S:
            self._check(gateway)
            gateway.checked_s = now_s
        at_s = self._clock()
        rules = gateway.rules
        for network in [network for network, rule in rules.items() if rule.until_s <= at_s]:
            del rules[network]
        wanted = self._wanted()
        for network in gateway.refused.keys() - wanted.keys():
            del gateway.refused[network]
        due = [
            order
            for order in openc2.orders(wanted, rules, at_s)
            if not isinstance(order, Deny) or order.ban.network not in gateway.refused
        ]
        for order in due[:AT_ONCE]:
            self._carry_out(gateway, order)
            if self._stop.is_set():
                return False
        return len(due) > AT_ONCE

    def _check(self, gateway: Gateway) -> None:
        """Ask what it does."""
        found: dict[Network, Rule] = {}
        is_whole = True
        for version in (4, 6):
            rules = self._query(gateway, openc2.EVERYBODY[version], version)
            is_whole = is_whole and len(rules) < openc2.QUERIED_MAX
            found |= rules
        if not is_whole:  # what it did not speak of is taken to be as we told it; what was lifted, to be still there
            told = {network: rule for network, rule in gateway.rules.items() if rule.ours}
            gone = {ip_network(one.network): Rule(until_s=one.until_s, ours=True) for one in self._lifted()}
            found = gone | told | found
        before, gateway.rules = gateway.rules, found
        wanted = self._wanted()
        for network, rule in found.items():
            ban = wanted.get(network)
            if ban is None or network in before or rule.allow:
                continue
            if rule.rate_per_s in (None, openc2.rate_of(ban)):
                self._confirm(ban, gateway.instance, "")

    def _query(self, gateway: Gateway, network: str, version: int) -> dict[Network, Rule]:
        """The gateway's rules that have to do with the network."""
        status, body = self._post(gateway, openc2.query(network, version))
        if status == 404:
            return {}
        if status != 200:
            raise GatewayError(f"it answers a query with {status}: {body[:200].decode(errors='replace')}")
        try:
            return openc2.read_rules(body, ahead_s=self._clock() - time.time())
        except BadAnswerError as error:
            raise GatewayError(str(error)) from error

    def _carry_out(self, gateway: Gateway, order: Order) -> None:
        if isinstance(order, Deny):
            # The gateway has one rule for a network, the last word: one that an operator gave since is not overruled.
            network = order.ban.network
            now = self._query(gateway, str(network), network.version)
            if network in now and not openc2.orders({network: order.ban}, {network: now[network]}, self._clock()):
                gateway.rules[network] = now[network]
                return
            if gateway.no_cause:
                order = _without_cause(order)
        status, body = self._post(gateway, openc2.command(order, secrets.token_hex(8), self._clock()))
        if status == 501 and isinstance(order, Deny) and order.ban.cause is not None:
            gateway.no_cause = True
            order = _without_cause(order)
            status, body = self._post(gateway, openc2.command(order, secrets.token_hex(8), self._clock()))
        try:
            text = openc2.read_answer(body)[1]
        except BadAnswerError:
            text = body[:200].decode(errors="replace")
        action = "deny" if isinstance(order, Deny) else "delete"
        self.orders[action, str(status)] += 1
        if isinstance(order, openc2.Delete):
            if status not in (200, 404):
                raise GatewayError(f"it answers a delete with {status}: {text}")
            gateway.rules.pop(order.network, None)
            return
        ban = order.ban
        if status == 200:
            gateway.rules[ban.network] = Rule(until_s=ban.until_s, ours=True, rate_per_s=openc2.rate_of(ban))
            does = "refuses" if ban.kind == "ban" else "slows"
            log.info("%s %s %s for %.0f s", gateway.instance, does, ban.network, ban.until_s - self._clock())
            self._confirm(ban, gateway.instance, "")
        elif status in (400, 501):
            gateway.refused[ban.network] = text
            log.warning("%s will not refuse %s: %s", gateway.instance, ban.network, text)
            self._confirm(ban, gateway.instance, text)
        else:
            raise GatewayError(f"it answers a deny with {status}: {text}")

    def _post(self, gateway: Gateway, body: bytes) -> tuple[int, bytes]:
        path = self._run_dir / f"{gateway.instance}.openc2.token"
        try:
            token = path.read_text().strip()
        except OSError as error:
            raise GatewayError(f"cannot read its token {path}: {error.strerror}") from error
        url = urlsplit(gateway.address)
        held = gateway.connection
        if held is not None and (held.host, held.port) != (url.hostname, url.port):
            held.close()
            held = None
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/openc2-cmd+json;version=1.0"}
        for is_kept in (True, False) if held is not None else (False,):
            connection = held if is_kept and held is not None else None
            if connection is None:
                connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=ANSWER_S)
            gateway.connection = connection
            try:
                connection.request("POST", "/openc2", body, headers)
                answer = connection.getresponse()
                content = answer.read(ANSWER_BYTES)
                if answer.will_close:
                    connection.close()
                    gateway.connection = None
                return answer.status, content
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                gateway.connection = None
                if not is_kept:  # a connection that was kept may just have been closed as it was idle
                    raise GatewayError(f"cannot reach it at {gateway.address}: {error}") from error
        raise AssertionError("unreachable")


def _is_address(text: str) -> bool:
    """Whether it is a base URL that can be asked; a status may say anything."""
    try:
        url = urlsplit(text)
        return url.scheme == "http" and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _without_cause(order: Deny) -> Deny:
    return Deny(ban=replace(order.ban, cause=None))
