"""The story, act by act: what is done, and what was seen to come of it. Nothing that is told is taken for granted."""

from __future__ import annotations

import http.client
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from bus.endpoints import host_name
from bus.messages import OutcomeKind, Verb
from cli.atlas import NO_DETAILS, AtlasSilent, Details, Refused, ask_events, ask_fleet, ask_why
from cli.demo import made_up
from cli.demo.crowd import Crowd, Line, Tally, Worker, failures, percentile
from cli.demo.made_up import ATTACKER, SCANNERS, VISITORS
from cli.demo.shop import METRIC, PEOPLE, password
from cli.demo.stage import SHOP, Stage, request, until
from cli.exits import Exit, Problem
from cli.fallback import Supervisord, as_view, instance_of
from cli.orders import carry_out
from cli.progress import Progress
from cli.rendering import duration, local_time, spark
from cli.selection import ATLAS, is_well

FABRIC, INTEL, REACTION = "cdn-data-fabric", "cdn-threat-intel", "cdn-threat-reaction"
STATISTICAL, GEOSPATIAL, GRAPH = "cdn-statistical", "cdn-geospatial", "glaf-graph-server"
MONITORING, ISOLATED, GATEWAY = "cdn-monitoring", "cdn-isolated-monitoring", "gateway-primary"
LOOPS = (ATLAS, GATEWAY, FABRIC, INTEL, REACTION, STATISTICAL, MONITORING, GEOSPATIAL, GRAPH, ISOLATED)
REPLICAS = 3
SHOPPERS, SHOPPED_PER_S = 10, 150
"""So many that they can ask enough to judge by, also where an answer takes a tenth of a second."""
ILL = 0.06
"""Under a tenth, from which on the gateway would leave an instance out at once, without its loop."""
PATIENCE_S = 180.0
"""What takes seconds on an idle machine may take long on one that is busy with something else."""
USUAL_S = 32
"""So many seconds cdn-statistical has to have seen of a series before it tells of a change."""
GUESSED_PER_S = 30
UNNOTICED_S, LEARNT_AGAIN_S = 40, 45
"""Who is not noticed so long will not be: he has become what is usual. After so long without him he no longer is."""
TILES = 8
RATE_S, WATCHED_S = 12, 60
JUDGED_WITHIN_S = 45.0
LONG_S = 60.0
"""A loop that takes longer than this to judge what it did is not waited for."""
SQL = "SELECT at, person, ok FROM logins WHERE address = ? ORDER BY at DESC LIMIT 20"
WHO = "cdnctl demo"


class Step(NamedTuple):
    """One act, as it went."""

    name: str
    title: str
    told: tuple[str, ...]
    """Sentences."""
    facts: dict[str, Any]
    took_s: float


class Play:
    """The acts, in order, on one stage; ``loops`` are the answers to GET /ooda that were collected on the way."""

    def __init__(self, stage: Stage, crowd: Crowd, seed: int) -> None:
        self._stage = stage
        self._crowd = crowd
        self._seed = seed
        self._show = Progress("")
        self._failed = Tally()
        self._began_s = 0.0
        self._objects = made_up.bundle(seed, time.time())
        self._chain: list[dict[str, Any]] = []
        self.loops: dict[str, list[dict[str, Any]]] = {name: [] for name in LOOPS}

    def acts(self) -> Iterator[tuple[str, str, Callable[[], tuple[list[str], dict[str, Any]]]]]:
        """Name, title, and what plays it."""
        yield "up", "a fleet of its own", self._up
        yield "crowd", "people come to the shop", self._people
        yield "index", "questions become quick", self._index
        yield "map and graph", "a map and a graph", self._map_and_graph
        yield "feeds", "a list that is wrong", self._feeds
        yield "scanners", "a network scans", self._scanners
        yield "ill", "one of three falls ill", self._ill
        yield "attack", "somebody guesses passwords", self._attack
        yield "traces", "one event, four views", self._traces
        yield "crash", "a service is killed", self._crash
        yield "atlas", "ATLAS is killed", self._atlas
        yield "watching", "what the monitors saw", self._watching
        yield "loops", "the loops' own verdicts", self._verdicts

    def play(self, name: str, title: str, act: Callable[[], tuple[list[str], dict[str, Any]]], show: Progress) -> Step:
        """Play one act. Raises Problem, with the act's title, where the story cannot go on."""
        self._show = show
        began_s = time.monotonic()
        try:
            told, facts = act()
            self._crowd.check()
        except Problem as error:
            raise Problem(f"{title}: {error.message}", Exit.FAILED) from error
        except (OSError, http.client.HTTPException) as error:
            raise Problem(f"{title}: cannot go on with the story: {error!r}", Exit.FAILED) from error
        return Step(name, title, tuple(told), facts, time.monotonic() - began_s)

    # -- what the acts share ---------------------------------------------------------------------------------

    def _until(self, look: Callable[[], Any], what: str, *, every_s: float = 0.05) -> Any:
        def checked() -> Any:
            self._crowd.check()
            return look()

        return until(checked, self._show, within_s=PATIENCE_S, what=what, every_s=every_s)

    def _wait(self, seconds: float) -> None:
        due_s = time.monotonic() + seconds
        while time.monotonic() < due_s:
            self._show.tick()
            time.sleep(0.05)

    def _loop(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._stage.call(name, "GET", "/ooda")
        return found

    def _acted(self, name: str, what: str, **like: Any) -> dict[str, Any]:
        """The first decision of the service's loop, of that kind, that it has acted on."""

        def look() -> dict[str, Any] | None:
            acted = [one for one in self._loop(name)["actions"] if like.items() <= (one["decision"] or {}).items()]
            return acted[0] if acted else None

        found: dict[str, Any] = self._until(look, f"{name} {what}", every_s=0.2)
        return found

    def _keep_loop(self, name: str) -> None:
        """What its loop has done so far, before its process goes."""
        self.loops[name].append(self._loop(name))

    def _order(self, verb: Verb, name: str, details: Details = NO_DETAILS, *, by_atlas: bool) -> float:
        """Have it done as cdnctl does; seconds that it took. Raises Problem."""
        run_dir = self._stage.run_dir
        rows = [as_view(row, host_name()) for row in Supervisord(run_dir).processes() if instance_of(row) == name]
        asked = frozenset({name}) if by_atlas else frozenset[str]()
        (outcome,) = carry_out(run_dir, verb, rows, PATIENCE_S, by_atlas=asked, show=self._show, details=details)
        if outcome.kind is not OutcomeKind.DONE:
            raise Problem(f"cannot {verb} {name}: {outcome.reason or outcome.kind}", Exit.FAILED)
        return outcome.took_s or 0.0

    def _as_client(self, client: str) -> int:
        """Status of what the gateway answers somebody at that address, whichever instance he comes to."""
        try:
            return request(self._stage.address(GATEWAY), "GET", "/shop/about", headers={"X-Forwarded-For": client})[0]
        except OSError as error:
            raise Problem(f"cannot ask the gateway: {error}", Exit.FAILED) from error

    def _kill(self, name: str) -> float:
        """SIGKILL; when, by the monotonic clock. Returns once it is gone."""
        view = self._stage.views().get(name)
        if view is None or view.pid is None:
            raise Problem(f"cannot kill {name}: ATLAS knows no process of it", Exit.FAILED)
        fd = os.pidfd_open(view.pid)
        try:
            at_s = time.monotonic()
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], PATIENCE_S)
        finally:
            os.close(fd)
        return at_s

    # -- the acts --------------------------------------------------------------------------------------------

    def _up(self) -> tuple[list[str], dict[str, Any]]:
        began_s = time.monotonic()
        names = self._stage.up(self._show)
        took_s = time.monotonic() - began_s
        for name in names:
            self._show.show(name, "")
        return [
            f"{len(names) - 1} programs, and a shop that is any program under cdn-run, are ready after {took_s:.1f} "
            f"s, in {self._stage.run_dir.path} and on free ports. A fleet of yours is not touched."
        ], {"programs": names, "ready_s": took_s, "run_dir": str(self._stage.run_dir.path)}

    def _people(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        took_s = self._order(Verb.SCALE, SHOP, Details(instances=REPLICAS), by_atlas=True)
        statsd = stage.call(STATISTICAL, "GET", "/")["statsd_udp"]
        for name in self._shops():
            stage.call(
                name, "POST", "/settings", f"statsd={quote(statsd)}".encode(), kind="application/x-www-form-urlencoded"
            )
        self._until(lambda: self._as_client(VISITORS[0]) == 200, "the gateway finds the shop")
        chance, gateway = Random(f"people {self._seed}"), stage.address_of(GATEWAY)

        def log_in(line: Line) -> int:
            name = f"person-{chance.randrange(PEOPLE)}"
            words = f"{name}:{password(name) if chance.random() < 0.7 else 'mistyped'}"
            return line.ask("POST", "/shop/login", words.encode(), {"X-Forwarded-For": chance.choice(VISITORS)})[0]

        self._crowd.add("people", log_in, gateway, 6)
        timings = made_up.durations(self._seed)

        def time_it(line: Line) -> int:
            body = next(timings).encode()
            return line.ask("POST", "/samples", body, {"Content-Type": "text/plain"})[0]

        self._crowd.add("timings", time_it, stage.address_of(STATISTICAL), 1)
        self._began_s = time.monotonic()
        return [
            f"shop scaled to {REPLICAS} in {took_s:.1f} s, found by the gateway. 6 log-ins a second from "
            "192.0.2.0/24, some of them mistyped: cdn-statistical hears of it by StatsD, and learns what is usual."
        ], {"replicas": len(self._shops()), "scaled_s": took_s}

    def _shops(self) -> list[str]:
        return [name for name, view in self._stage.views().items() if view.service == SHOP and view.address]

    def _index(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        began_s = time.monotonic()
        stage.call(FABRIC, "PUT", "/sources/logins?kind=csv", made_up.logins(self._seed).encode())
        loaded_s = time.monotonic() - began_s
        asked_for = made_up.addresses_asked_for(self._seed)

        def ask(line: Line) -> int:
            body = b'{"sql": "%b", "params": ["%b"]}' % (SQL.encode(), next(asked_for).encode())
            return line.ask("POST", "/sql", body, {"Content-Type": "application/json"})[0]

        asking = self._crowd.add("questions", ask, stage.address_of(FABRIC), 25)
        action = self._acted(FABRIC, "makes an index")
        before = list(asking.asked)
        at_s = time.monotonic()
        self._until(lambda: len(asking.since(at_s + 0.5)) >= 40, "questions are answered with the index")
        after = asking.since(at_s + 0.5)
        p95_s = percentile(before, 0.95), percentile(after, 0.95)
        return [
            f"{made_up.ROWS:,} log-ins loaded as a table in {loaded_s:.1f} s, and asked 25 times a second what one "
            f"address did. Its loop saw that each question reads the whole table, and made an index: "
            f"95 of 100 answers within {_ms(p95_s[0])} before, {_ms(p95_s[1])} after."
        ], {
            "rows": made_up.ROWS,
            "loaded_s": loaded_s,
            "p95_s": {"before": p95_s[0], "after": p95_s[1]},
            "questions": {"before": len(before), "after": len(after)},
            "decision": action["decision"],
        }

    def _map_and_graph(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        began_s = time.monotonic()
        query = {"sql": "SELECT id, lon, lat, city, max(at) AS at FROM logins GROUP BY address", "limit": made_up.ROWS}
        places = stage.call(FABRIC, "POST", "/sql?format=geojson&lon=lon&lat=lat", query)
        content = places.encode() if isinstance(places, str) else _json(places)
        loaded = stage.call(GEOSPATIAL, "PUT", "/collections/logins", content, kind="application/geo+json")
        on_map_s = time.monotonic() - began_s
        began_s = time.monotonic()
        stage.call(GRAPH, "POST", "/import", {"type": "bundle", "id": "bundle--1", "objects": self._objects})
        in_graph_s = time.monotonic() - began_s
        shown = made_up.windows(self._seed)
        groups = cycle(one["id"] for one in self._objects if one["type"] == "intrusion-set")

        def look(line: Line) -> int:
            """A screen of a map is many small windows, one after the other."""
            status = 0
            for west, south, east, north in islice(shown, TILES):
                box = f"{west:.3f},{south:.3f},{east:.3f},{north:.3f}"
                status = line.ask("GET", f"/collections/logins/items?bbox={box}&limit=10")[0]
            return status

        def walk(line: Line) -> int:
            return line.ask("GET", f"/nodes/{next(groups)}/khop?k=3&limit=50")[0]

        self._crowd.add("map", look, stage.address_of(GEOSPATIAL), 8)
        self._crowd.add("graph", walk, stage.address_of(GRAPH), 12)
        size = stage.call(GRAPH, "GET", "/graph")
        return [
            f"the same rows as GeoJSON are on cdn-geospatial's map after {on_map_s:.1f} s, {len(self._objects):,} "
            f"objects of STIX 2.1 in glaf-graph-server after {in_graph_s:.1f} s. {8 * TILES} looks at the map and 12 "
            "walks of three hops a second."
        ], {"map": loaded, "graph": size, "objects": len(self._objects)}

    def _feeds(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        listed, rumours = made_up.bad_addresses(self._seed), made_up.rumours(self._seed)
        stage.call(INTEL, "PUT", "/feeds/blocklist?confidence=95", "\n".join(listed) + "\n")
        stage.call(INTEL, "PUT", "/feeds/rumours?confidence=95", "\n".join(rumours) + "\n")
        objects = {"type": "bundle", "id": "bundle--2", "objects": made_up.about_the_attacker(self._objects)}
        stage.call(INTEL, "PUT", "/feeds/friends?confidence=90", objects)
        words = [(value, "false_positive") for value in rumours[: made_up.WRONG_RUMOURS]]
        words += [(value, "true_positive") for value in rumours[made_up.WRONG_RUMOURS :][: made_up.RIGHT_RUMOURS]]
        before = self._malicious(rumours)
        for value, verdict in words:
            body = {"value": value, "verdict": verdict, "feed": "rumours", "judged_by": WHO}
            stage.call(INTEL, "POST", "/verdicts", body)
        action = self._acted(INTEL, "trusts the feed less", feed="rumours")
        after = self._until(lambda: (count := self._malicious(rumours)) < before and (count,), "the feed weighs less")[
            0
        ]
        return [
            f"{len(listed):,} bad addresses, a bundle of STIX, and a list of {len(rumours)} rumours, of which a "
            f"person found {made_up.WRONG_RUMOURS} of {len(words)} to be wrong. The loop trusts that list less: on "
            f"its word alone {before} addresses were called malicious before, {after} after."
        ], {
            "listed": len(listed),
            "rumours": len(rumours),
            "malicious": {"before": before, "after": after},
            "decision": action["decision"],
        }

    def _malicious(self, values: list[str]) -> int:
        """How many of them cdn-threat-intel calls so; asked as by a page, so that nobody is told of a sighting."""
        body = _json({"values": values})
        headers = {"Content-Type": "application/json", "Origin": self._stage.address(INTEL)}
        status, answer = request(self._stage.address(INTEL), "POST", "/correlate", body, headers)
        if status != 200:
            raise Problem(f"cannot look up {len(values)} addresses: {status}", Exit.FAILED)
        return answer.count(b'"malicious"')

    def _scanners(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        stage.call(REACTION, "POST", "/playbooks/repeated-prefix/approve", {"by": WHO, "for_s": 3600})
        who = cycle(SCANNERS)
        let_in = Tally()

        def scan(line: Line) -> int:
            address = next(who)
            status = line.ask("GET", "/shop/wp-login.php", None, {"X-Forwarded-For": address})[0]
            if status == 404:  # the shop has logged it
                self._failed.add(address)
                let_in.add("all")
            return status

        def ship(line: Line) -> int:
            """The log shipper: what the shop has refused, as sightings."""
            counts = self._failed.take()
            if not counts:
                return 204
            body = [{"address": address, "kind": "http_refused", "count": count} for address, count in counts.items()]
            headers = {"Authorization": f"Bearer {stage.token(REACTION)}", "Content-Type": "application/json"}
            return line.ask("POST", "/sightings", _json(body), headers)[0]

        scanning = self._crowd.add("scanners", scan, stage.address_of(GATEWAY), 32)
        self._crowd.add("shipper", ship, stage.address_of(REACTION), 2)
        began_s = time.monotonic()
        action = self._acted(REACTION, "bans the network")
        self._until(lambda: self._as_client(SCANNERS[0]) == 403, "the gateway refuses the network")
        refused_s = time.monotonic() - began_s
        let = let_in.take()["all"]
        self._until(lambda: len(scanning.since(began_s + refused_s)) >= 16, "the scanners go on")
        after = scanning.since(began_s + refused_s)
        refused = sum(one.status == 403 for one in after)
        neighbour = self._as_client(VISITORS[1])
        return [
            f"{len(SCANNERS)} addresses of {made_up.NETWORK} ask for what is not there, each too seldom to be banned "
            "for it. The loop saw the network, banned it as one, as a person had approved beforehand, and the "
            f"gateway refused it {refused_s:.1f} s after it began: {let} requests let in before; of the next "
            f"{len(after)}, {refused} got 403, and a visitor still gets {neighbour}."
        ], {
            "let_in": let,
            "refused_s": refused_s,
            "after": {"asked": len(after), "refused": refused},
            "visitor": neighbour,
            "decision": action["decision"],
        }

    def _ill(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        visitors = cycle(VISITORS)

        def shop(line: Line) -> int:
            return line.ask("GET", "/shop/", None, {"X-Forwarded-For": next(visitors)})[0]

        shoppers = [
            self._crowd.add(f"shoppers {n}", shop, stage.address_of(GATEWAY), SHOPPED_PER_S / SHOPPERS)
            for n in range(SHOPPERS)
        ]
        self._until(lambda: all(one.asked for one in shoppers), "shoppers come")
        self._wait(1)
        patient = sorted(self._shops())[-1]
        stage.call(patient, "POST", "/settings", f"ill={ILL}".encode(), kind="application/x-www-form-urlencoded")
        at_s = time.monotonic()
        action = self._acted(GATEWAY, "gives the one that is ill less to do", instance=patient)
        acted_s = time.monotonic()
        self._until(lambda: sum(len(one.since(acted_s)) for one in shoppers) >= 300, "shoppers go on")
        before = [one for each in shoppers for one in each.since(at_s) if one.at_s < acted_s]
        after = [one for each in shoppers for one in each.since(acted_s)]
        rates = failures(before), failures(after)
        return [
            f"{SHOPPED_PER_S} requests a second, and {patient} fails with {ILL:.0%} of its own. {acted_s - at_s:.1f} "
            f"s later the loop of the gateway gave it {action['decision']['weight']:g} of its weight: {rates[0]:.1%} "
            f"of all that was asked failed before, {rates[1]:.1%} after."
        ], {
            "instance": patient,
            "failed": {"before": rates[0], "after": rates[1]},
            "requests": {"before": len(before), "after": len(after)},
            "acted_s": acted_s - at_s,
            "decision": action["decision"],
        }

    def _attack(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        self._until(lambda: time.monotonic() - self._began_s > USUAL_S, "cdn-statistical learns what is usual")
        chance = Random(f"guesses {self._seed}")

        def guess(line: Line) -> int:
            words = f"person-{chance.randrange(PEOPLE)}:{chance.randrange(10**6)}"
            return line.ask("POST", "/shop/login", words.encode(), {"X-Forwarded-For": ATTACKER})[0]

        before = self._as_client(ATTACKER)
        began_unix_s = time.time()
        guessing = self._crowd.add("guesser", guess, stage.address_of(GATEWAY), GUESSED_PER_S)
        reaction, began_s = self._noticed(guessing)
        proposed_s = time.monotonic() - began_s
        waiting = self._as_client(ATTACKER)
        approved_s = time.monotonic()
        body = {"by": WHO, "why": "it guesses passwords, and everybody warns of it"}
        stage.call(REACTION, "POST", f"/reactions/{reaction['id']}/approve", body)
        self._until(lambda: self._as_client(ATTACKER) == 403, "the gateway refuses the attacker", every_s=0.002)
        refused_s = time.monotonic() - approved_s
        tried = len(guessing.since(began_s))
        guessing.per_s = 4
        visitor = self._as_client(VISITORS[2])
        kinds = {"change_point", "sighting", "reaction", "blocked"}
        cause = reaction["cause"]
        self._chain = self._until(lambda: self._told(cause, kinds), "the chain of events is whole", every_s=0.1)
        technique = ", ".join(next(one["facts"]["techniques"] for one in self._chain if one["kind"] == "sighting"))
        lines = [f"    {local_time(each['time_s'])[11:]}  {each['instance']:20} {each['text']}" for each in self._chain]
        return [
            f"{ATTACKER} guesses {GUESSED_PER_S} times a second. After {proposed_s:.1f} s and {tried} guesses "
            "cdn-statistical had told that failed log-ins rise, and who is behind it; cdn-threat-intel, that he is "
            f"listed, and for {technique}; cdn-threat-reaction proposed a ban. Until that was approved, by this "
            f"demonstration in your place, he got {waiting}; {_ms(refused_s)} after it 403, and a visitor {visitor}.",
            *lines,
        ], {
            "status": {"before": before, "proposed": waiting, "approved": 403, "visitor": visitor},
            "proposed_s": proposed_s,
            "refused_s": refused_s,
            "guesses": tried,
            "began_s": began_unix_s,
            "chain": self._chain,
        }

    def _noticed(self, guessing: Worker) -> tuple[dict[str, Any], float]:
        """The ban that is proposed, and when what led to it began. Unnoticed, he stops for a while, and begins again.

        What cdn-statistical has told of a change is no news to it, and it learns anew what is usual. Where a busy
        machine holds the visitors up, and so changes how often they fail, that may be just when he begins.
        """
        began_s = time.monotonic()

        def look() -> dict[str, Any] | None:
            nonlocal began_s
            elapsed_s = time.monotonic() - began_s
            if elapsed_s > UNNOTICED_S + LEARNT_AGAIN_S:
                guessing.per_s, began_s = GUESSED_PER_S, time.monotonic()
            elif elapsed_s > UNNOTICED_S:
                guessing.per_s = 0
            return self._proposed()

        reaction: dict[str, Any] = self._until(look, "a ban is proposed", every_s=0.1)
        return reaction, began_s

    def _proposed(self) -> dict[str, Any] | None:
        found = self._stage.call(REACTION, "GET", "/reactions?state=proposed")["reactions"]
        return next((one for one in found if one["address"] == ATTACKER), None)

    def _told(self, cause: str, kinds: set[str]) -> list[dict[str, Any]]:
        """The chain of that event, once it has all those kinds and an executed reaction."""
        try:
            events = ask_events(self._stage.run_dir, 50, chain=cause).events
        except (AtlasSilent, Refused):
            return []
        found = [
            {"id": one.id, "cause": one.cause, "time_s": one.time_s, "instance": one.instance, "kind": one.kind}
            | {"text": one.text, "facts": one.facts}
            for one in events
        ]
        executed = any(one.facts.get("state") == "executed" for one in events)
        return found if executed and kinds <= {one.kind for one in events} else []

    def _traces(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        (root,) = [one["id"] for one in self._chain if one["kind"] == "change_point"]
        lon, lat = made_up.ATTACKER_AT
        ring = [[lon - 1, lat - 1], [lon + 1, lat - 1], [lon + 1, lat + 1], [lon - 1, lat + 1], [lon - 1, lat - 1]]
        stage.call(GEOSPATIAL, "PUT", "/fences/home", {"type": "Polygon", "coordinates": [ring]})
        for at in (lon - 5, lon):
            stage.call(GEOSPATIAL, "PUT", f"/tracks/{ATTACKER}", {"positions": [{"lon": at, "lat": lat}]})
        crossings = stage.call(GEOSPATIAL, "GET", "/crossings?fence=home")["crossings"]
        policy = next(one["id"] for one in self._objects if one["type"] == "course-of-action")
        way = f"/paths?from=observable:{ATTACKER}&to={policy}&direction=both&max_staleness_s=0"
        path = self._until(lambda: stage.call(GRAPH, "GET", way)["paths"], "the graph has heard of the attacker")[0]
        body = {"sql": CHAIN, "params": [root]}
        rows = self._until(
            lambda: (
                (found := stage.call(FABRIC, "POST", "/sql", body)["rows"]) and len(found) >= len(self._chain) and found
            ),
            "the events are rows of a table",
        )
        crossed = {"sql": "SELECT count(*) AS n FROM events WHERE kind = 'fence'"}
        fences = self._until(lambda: stage.call(FABRIC, "POST", "/sql", crossed)["rows"][0][0], "the crossing is a row")
        way_text = " ".join(self._way(path))
        (entered,) = crossings
        return [
            f"on the map it enters the area “home” at {entered['lon']:g}, {entered['lat']:g}, which is an event, too. "
            f"In the graph the shortest way from it to what helps: {way_text}. In cdn-data-fabric all events are a "
            f"table, and one SQL statement has the whole chain: {len(rows)} rows."
        ], {"crossing": entered, "path": self._way(path), "rows": rows, "fence_events": fences}

    def _way(self, path: dict[str, Any]) -> list[str]:
        """Nodes and relationships by turns, by their names."""
        names = {one["id"]: one["name"] for one in self._objects if "name" in one}
        nodes = [names.get(node["id"], node["id"]) for node in path["nodes"]]
        arrows = [
            f"—{one['type']}→" if one["from"] == node["id"] else f"←{one['type']}—"
            for one, node in zip(path["relationships"], path["nodes"], strict=False)
        ]
        return [part for pair in zip(nodes, [*arrows, ""], strict=True) for part in pair if part]

    def _crash(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        self._until(
            lambda: not _settling(self._loop(FABRIC)), "the loop of cdn-data-fabric has judged its index", every_s=0.2
        )
        self._keep_loop(FABRIC)
        indexes = self._indexes()
        count = {"sql": "SELECT count(*) AS n FROM logins"}
        rows = stage.call(FABRIC, "POST", "/sql", count)["rows"]
        at_s = self._kill(FABRIC)
        line = Line(stage.address_of(GATEWAY))
        try:
            self._until(
                lambda: line.ask("GET", f"/{FABRIC}/sources")[0] == 200, "cdn-data-fabric answers again", every_s=0.002
            )
            back_s = time.monotonic() - at_s
        finally:
            line.close()
        stage.forget(FABRIC)
        self._until(lambda: stage.views().get(FABRIC) and stage.views()[FABRIC].address, "ATLAS knows where it is")
        is_whole = stage.call(FABRIC, "POST", "/sql", count)["rows"] == rows and self._indexes() == indexes
        if not is_whole:
            raise Problem("cdn-data-fabric has not all that it had acknowledged", Exit.FAILED)
        life = self._until(self._end_of_fabric, "ATLAS knows why it ended", every_s=0.1)
        return [
            f"kill -9 of cdn-data-fabric: it answers through the gateway again after {_ms(back_s)}, with all its rows "
            f"and its index. cdnctl why {FABRIC}: {life.summary}."
        ], {"back_s": back_s, "indexes": indexes, "why": life.summary, "end": life.end}

    def _indexes(self) -> list[str]:
        tables = self._stage.call(FABRIC, "GET", "/sources/logins")["tables"]
        return [name for one in tables for name in one["indexes"]]

    def _end_of_fabric(self) -> Any:
        try:
            lives = ask_why(self._stage.run_dir, FABRIC, 3).incarnations
        except (AtlasSilent, Refused):
            return None
        return next((life for life in lives if life.end), None)

    def _atlas(self) -> tuple[list[str], dict[str, Any]]:
        stage = self._stage
        self._keep_loop(ATLAS)
        others = [name for name in LOOPS if name != ATLAS]
        pids = {name: view.pid for name, view in stage.views().items() if name != ATLAS}
        for name in others:
            stage.address(name)
        at_s = self._kill(ATLAS)
        refused, visitor = self._as_client(ATTACKER), self._as_client(VISITORS[3])
        alive = [name for name in others if stage.call(name, "GET", "/livez")]
        incident = self._until(self._incident, "cdn-isolated-monitoring names a root cause")
        told_s = time.monotonic() - at_s
        try:
            ask_fleet(stage.run_dir)
        except (AtlasSilent, Refused):
            pass
        else:
            raise Problem("cannot show a fleet without ATLAS: it is back, and nobody started it", Exit.FAILED)
        refused_still = self._as_client(ATTACKER)
        began_s = time.monotonic()
        self._order(Verb.START, ATLAS, by_atlas=False)
        self._until(lambda: self._is_whole(pids), "ATLAS sees the whole fleet again")
        whole_s = time.monotonic() - began_s
        stage.forget(ATLAS)
        return [
            f"kill -9 of ATLAS, and this time nothing restarts it: {len(alive)} of {len(others)} services answer as "
            f"before, the attacker gets {refused_still}, a visitor {visitor}. cdn-isolated-monitoring, which needs "
            f"none of them, told of one incident after {told_s:.1f} s: {incident['title']}. cdnctl start atlas: it "
            f"sees the whole fleet again, each process the same as before, after {whole_s:.1f} s."
        ], {
            "status": {"attacker": refused, "attacker_later": refused_still, "visitor": visitor},
            "alive": alive,
            "incident": incident,
            "told_s": told_s,
            "whole_s": whole_s,
        }

    def _incident(self) -> dict[str, Any] | None:
        """The one that is open about ATLAS."""
        incidents = self._stage.call(ISOLATED, "GET", "/api/incidents")["incidents"]
        return next((one for one in incidents if one["root"] == ATLAS and one["is_open"]), None)

    def _is_whole(self, pids: dict[str, int | None]) -> bool:
        views = self._stage.views()
        return all(name in views and views[name].pid == pid and is_well(views[name]) for name, pid in pids.items())

    def _watching(self) -> tuple[list[str], dict[str, Any]]:
        now_s = time.time()
        failed = f"sum(rate({METRIC}[{RATE_S}s]))"
        query = f"query={quote(failed)}&start={now_s - WATCHED_S:.0f}&end={now_s:.0f}&step=2"
        series = self._stage.call(MONITORING, "GET", f"/api/v1/query_range?{query}")["data"]["result"]
        rates = [float(value) for one in series for _, value in one["values"]]
        cycles = self._loop(MONITORING)["cycles"]
        looked = cycles[-1]["observation"] if cycles else {}
        intervals = sorted(one["interval_s"] for one in looked.get("worst", ()))
        shown = f" {spark(rates, floor=0.0)} up to {max(rates):.0f}" if rates else ", none as yet"
        paced = (
            f", every {' to '.join(dict.fromkeys(f'{one:.2g}' for one in (intervals[0], intervals[-1])))} s"
            if intervals
            else ""
        )
        return [
            f"cdn-monitoring scraped {looked.get('targets', 0)} targets{paced}. Failed log-ins a second by what it "
            f"has kept, in PromQL:{shown}."
        ], {"failed_per_s": rates, "targets": looked.get("targets"), "intervals_s": intervals}

    def _verdicts(self) -> tuple[list[str], dict[str, Any]]:
        deadline_s = time.monotonic() + JUDGED_WITHIN_S
        waited_for: list[str] = []
        for name in LOOPS:
            loop = self._loop(name)
            while _settling(loop) and loop["settle_s"] <= LONG_S and time.monotonic() < deadline_s:
                if name not in waited_for:
                    waited_for.append(name)
                self._wait(0.2)
                loop = self._loop(name)
            self.loops[name].append(loop)
        late = [name for name in LOOPS if _settling(self.loops[name][-1])]
        told = "each loop measures what its change did, and takes it back if that did not help"
        if waited_for:
            told += f"; waited for the verdict of {', '.join(waited_for)}"
        if late:
            told += f"; {', '.join(late)} has not judged yet, as that takes longer than this story"
        return [told + "."], {"waited_for": waited_for, "not_judged": late}


CHAIN = """WITH RECURSIVE chain(id) AS (SELECT ? UNION SELECT e.id FROM events e JOIN chain c ON e.cause = c.id)
SELECT at_s, instance, kind, text FROM events JOIN chain USING (id) ORDER BY at_s"""


def _settling(loop: dict[str, Any]) -> bool:
    return any((one.get("effect") or {}).get("verdict") == "settling" for one in loop["actions"])


def _ms(seconds: float) -> str:
    return (
        f"{seconds * 1000:.1f} ms"
        if seconds < 0.0995
        else f"{seconds * 1000:.0f} ms"
        if seconds < 10
        else duration(seconds)
    )


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
