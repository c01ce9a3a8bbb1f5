"""What gets through: fail2ban's default, our playbooks with the loop off and on; and how soon a gateway knows.

    python -m benchmarks.threat_reaction [--ssh OpenSSH_2k.log] [--web access.log] [--fail2ban DIR] [--part P] [--json]

Logs are replayed in their own time: an attempt from an address that is banned then is held off, any other gets
through. Each decision knows only what came before it. Ours go through the service's own desk and database, every
playbook with a standing approval.

--ssh is a log of sshd's; https://github.com/logpai/loghub has a real one, OpenSSH_2k.log, free for research. Without
it one is made up (--seed): guessers, some of them by whole networks, among people who mistype. --web is an access log
in the common or combined format; https://github.com/elastic/examples has a real one, apache_logs. Its refusals (4xx)
are sightings. Without it one is made up.

fail2ban is its own filter and its own count of failures, if it is there: installed, or --fail2ban DIR with Debian's
package unpacked (dpkg-deb -x fail2ban_*.deb DIR). Without it, its policy: five failures in 600 s are banned for 600 s.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from bus.messages import OodaMode
from cdn_daemon.tokens import token_in
from services.threat_reaction.desk import Desk
from services.threat_reaction.judgement import Sighted
from services.threat_reaction.memory import is_good
from services.threat_reaction.networks import alone, read_address
from services.threat_reaction.ooda import PrefixBanner
from services.threat_reaction.playbooks import DEFAULTS
from services.threat_reaction.sshd import read_line
from tests.gateway.sockets import Client as Socket
from tests.gateway.support import a_fleet
from tests.support import short_dir
from tests.threat_reaction.support import reacting

YEAR = 2026
PACKAGES = Path("usr/lib/python3/dist-packages")


class Attempt(Struct, frozen=True):
    """One line of a log."""

    sighted: Sighted
    line: str
    is_honest: bool = False


class Replayed(Struct, kw_only=True):
    """What a policy let through."""

    policy: str
    attempts: int
    let_through: int
    """Of those who guess."""
    banned: int
    """Addresses that were banned for themselves; those within a banned network are not counted."""
    networks_banned: int = 0
    honest: int = 0
    """Attempts, good and bad, of people who belong there."""
    honest_held_off: int = 0
    honest_banned: int = 0
    """People who were held off at least once."""


Bans = Callable[[Attempt], bool]
"""Whether the attempt is held off; else it has been taken in."""


def replay(
    policy: str, attempts: Iterable[Attempt], is_held_off: Bans, bans: Callable[[], tuple[int, int]]
) -> Replayed:
    """Play the log to a policy."""
    result = Replayed(policy=policy, attempts=0, let_through=0, banned=0)
    hit = set()
    for attempt in attempts:
        held_off = is_held_off(attempt)
        if attempt.is_honest:
            result.honest += 1
            result.honest_held_off += held_off
            if held_off:
                hit.add(attempt.sighted.address)
        elif not is_good(attempt.sighted.kind):
            result.attempts += 1
            result.let_through += not held_off
    result.honest_banned = len(hit)
    result.banned, result.networks_banned = bans()
    return result


# -- the policies -----------------------------------------------------------------------------------------


def fail2bans_policy(attempts: list[Attempt]) -> Replayed:
    """maxretry 5, findtime 600, bantime 600, as jail.conf has them."""
    failures: dict[Any, list[float]] = defaultdict(list)
    until: dict[Any, float] = {}

    def is_held_off(attempt: Attempt) -> bool:
        who, now_s = attempt.sighted.address, attempt.sighted.at_s
        if until.get(who, 0.0) > now_s:
            return True
        if not is_good(attempt.sighted.kind):
            failures[who] = [at_s for at_s in failures[who] if at_s > now_s - 600] + [now_s]
            if len(failures[who]) >= 5:
                until[who], failures[who] = now_s + 600, []
        return False

    return replay("fail2ban's default policy", attempts, is_held_off, lambda: (len(until), 0))


def fail2ban_itself(root: Path, attempts: list[Attempt], log: list[tuple[float, str]]) -> Replayed:
    """Its own filter for sshd, in its default mode, over every line of the log; its own count; 600 s."""
    sys.path.insert(0, str(root / PACKAGES))
    from fail2ban.client.filterreader import FilterReader
    from fail2ban.server.filter import Filter
    from fail2ban.server.mytime import MyTime
    from fail2ban.version import version

    until: dict[str, float] = {}

    class Jail:
        """What a filter needs of its jail."""

        name, database, actions = "sshd", None, None

        def putFailTicket(self, ticket: Any) -> None:
            until[str(ticket.getID())] = ticket.getTime() + 600

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    reader = FilterReader("sshd", "sshd", {}, basedir=str(root / "etc/fail2ban"))
    reader.read()
    reader.getOptions({})
    own = Filter(Jail())
    own.setFindTime(600)
    own.setMaxRetry(5)
    own.setUseDns("no")
    own.setLogTimeZone("UTC")
    for _, _, what, *more in reader.convert():
        for value in more[0] if isinstance(more[0], list) else more:
            match what:
                case "prefregex":
                    own.prefRegex = value
                case "addfailregex":
                    own.addFailRegex(value)
                case "addignoreregex":
                    own.addIgnoreRegex(value)
                case "datepattern":
                    own.setDatePattern(value)
                case "maxlines":
                    own.setMaxLines(value)
    by_line = {attempt.line: attempt for attempt in attempts}
    held: dict[str, bool] = {}
    sessions_gone: set[str] = set()
    for at_s, line in log:
        MyTime.setTime(at_s)
        session = match_[1] if (match_ := re.search(r"sshd\[(\d+)\]", line)) else ""
        attempt = by_line.get(line)
        who = str(attempt.sighted.address) if attempt else next(iter(re.findall(r"\d+(?:\.\d+){3}", line)), "")
        # A session of somebody who is banned when it begins does not take place: no line of it is written.
        is_off = session in sessions_gone or until.get(who, 0.0) > at_s
        if attempt is not None:
            held[line] = is_off
        if is_off:
            sessions_gone.add(session)
        else:
            own.processLineAndAdd(line)
    MyTime.setTime(None)
    return replay(f"fail2ban {version} itself", attempts, lambda a: held[a.line], lambda: (len(until), 0))


class Ours:
    """The service's desk and loop, in the log's time."""

    def __init__(self, path: Path, mode: OodaMode, begin_s: float) -> None:
        self.now_s = begin_s
        self.desk = Desk(path / f"{mode}.db", clock=lambda: self.now_s)
        self.desk.open()
        for name in DEFAULTS:
            self.desk.stand(name, "benchmark", None, stands=True).result()
        desk = self.desk

        class Hand:
            """Carries out what the loop decides."""

            def contain(self, prefix: str) -> None:
                desk.contain_prefix(prefix).result()

            def release(self, prefix: str) -> None:
                desk.release_prefix(prefix).result()

        self.loop = PrefixBanner(
            lambda: desk.picture,
            desk.may_contain_prefixes,
            lambda prefix: prefix in desk.neighbourhoods_handled,
            Hand(),
        )
        self.loop.mode = mode
        self.banned: set[str] = set()
        self.networks: set[str] = set()

    def is_held_off(self, attempt: Attempt) -> bool:
        """Let time pass until the attempt, then take it in."""
        self._pass_until(attempt.sighted.at_s)
        address = attempt.sighted.address
        if any(address in ban.network for ban in self.desk.bans.values() if ban.until_s > self.now_s):
            return True
        self.desk.sight([(attempt.sighted, None)]).result()
        if alone(address) in self.desk.bans:
            self.banned.add(str(address))
        return False

    def _pass_until(self, at_s: float) -> None:
        steps = 0
        while self.now_s < at_s:
            self.now_s = min(at_s, self.now_s + (1.0 if steps < 90 else 60.0))
            steps += 1
            self.desk.tick().result()
            for _ in range(3):
                if (work := self.loop.step(self.now_s)) is not None:
                    work.run()
                    self.loop.finished(self.now_s, None)
            self.networks |= {str(net) for net in self.desk.bans if net.prefixlen not in (32, 128)}


def ours(attempts: list[Attempt], mode: OodaMode) -> Replayed:
    """Our playbooks, with the loop in this mode."""
    with tempfile.TemporaryDirectory() as path:
        one = Ours(Path(path), mode, attempts[0].sighted.at_s)
        try:
            name = f"our playbooks, the loop {mode}"
            return replay(name, attempts, one.is_held_off, lambda: (len(one.banned), len(one.networks)))
        finally:
            one.desk.close()


# -- the logs ---------------------------------------------------------------------------------------------


def sshd_log(path: Path) -> tuple[list[Attempt], list[tuple[float, str]]]:
    """Attempts, and every line with its time. A line is an attempt, also one that speaks of several."""
    attempts, lines = [], []
    for line in path.read_text(errors="replace").splitlines():
        at_s = datetime.strptime(f"{YEAR} {line[:15]}", "%Y %b %d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        lines.append((at_s, line))
        sighted = read_line(line, YEAR)
        if sighted is not None and not is_good(sighted.kind):
            # Whoever got in with a password may still have been a guesser, so such lines accuse and excuse nobody.
            attempts.append(Attempt(sighted, line))
    return attempts, lines


def _line(at_s: float, number: int, text: str, address: str) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    return (
        f"{at:%b} {at.day:2} {at:%H:%M:%S} host sshd[{number}]: {text} from {address} port {1024 + number % 60000} ssh2"
    )


def made_up_sshd_log(seed: int) -> list[Attempt]:
    """Four hours: 20 guessers by themselves, 20 networks of guessers who each try twice, 200 people who mistype."""
    chance = random.Random(seed)
    begin_s = datetime(YEAR, 3, 1, tzinfo=UTC).timestamp()
    lines: list[tuple[float, str, bool]] = []

    def add(at_s: float, text: str, address: str, *, is_honest: bool) -> None:
        lines.append((at_s, _line(at_s, 1000 + len(lines), text, address), is_honest))

    for guesser in range(20):
        at_s = begin_s + chance.uniform(0, 3600)
        for _ in range(chance.randrange(20, 60)):
            name = chance.choice(("root", "root", "invalid user admin", "invalid user test"))
            add(at_s, f"Failed password for {name}", f"203.0.{guesser}.{chance.randrange(1, 3)}", is_honest=False)
            at_s += chance.expovariate(1 / 40)
    for network in range(20):
        at_s = begin_s + chance.uniform(0, 7200)
        for member in range(30):
            for _ in range(2):
                add(at_s, "Failed password for invalid user oracle", f"198.51.{network}.{member + 1}", is_honest=False)
                at_s += chance.expovariate(1 / 20)
    for person in range(200):
        # Half of them share the ten networks of an office; nobody shares an address.
        address = f"192.0.{person % 10}.{person + 1}" if person % 2 else f"100.{person}.0.9"
        for _ in range(chance.randrange(1, 5)):
            at_s = begin_s + chance.uniform(0, 14_000)
            while chance.random() < 0.2:  # mistyped, at times the name itself
                name = "invalid user x" if chance.random() < 0.1 else f"u{person}"
                add(at_s, f"Failed password for {name}", address, is_honest=True)
                at_s += chance.uniform(3, 12)
            add(at_s, f"Accepted password for u{person}", address, is_honest=True)
    attempts = []
    for _, line, is_honest in sorted(lines):
        sighted = read_line(line, YEAR)
        assert sighted is not None
        attempts.append(Attempt(sighted, line, is_honest))
    return attempts


_REQUEST = re.compile(r'(\S+) \S+ \S+ \[([^\]]+)\] ".*" (\d{3}) ')


def web_log(path: Path) -> list[Attempt]:
    """Every request of an access log; those that were refused are sightings."""
    attempts = []
    for line in path.read_text(errors="replace").splitlines():
        if (match := _REQUEST.match(line)) is None:
            continue
        at_s = datetime.strptime(match[2], "%d/%b/%Y:%H:%M:%S %z").timestamp()
        kind = "http_refused" if match[3].startswith("4") else "http_accepted"
        attempts.append(Attempt(Sighted(address=read_address(match[1]), kind=kind, at_s=at_s), line, is_honest=True))
    return sorted(attempts, key=lambda attempt: attempt.sighted.at_s)


def made_up_web_log(seed: int) -> list[Attempt]:
    """A day of 500 visitors, each with pages that are not there now and then."""
    chance = random.Random(seed)
    attempts = []
    for visitor in range(500):
        address = read_address(f"100.{visitor // 250}.{visitor % 250}.7")
        at_s = datetime(YEAR, 3, 1, tzinfo=UTC).timestamp() + chance.uniform(0, 80_000)
        for _ in range(chance.randrange(1, 80)):
            kind = "http_refused" if chance.random() < 0.05 else "http_accepted"
            attempts.append(Attempt(Sighted(address=address, kind=kind, at_s=at_s), "", is_honest=True))
            at_s += chance.expovariate(1 / 5)
    return sorted(attempts, key=lambda attempt: attempt.sighted.at_s)


# -- how quickly ------------------------------------------------------------------------------------------


class Speed(Struct, kw_only=True):
    """Of the real processes; load and service share the machine."""

    contain_p50_ms: float
    """From sending the sighting that is enough to a gateway that refuses the address."""
    contain_p95_ms: float
    answer_p50_ms: float
    """Of one sighting, on disk."""
    sightings_per_s: float
    """In batches of 500, on disk."""


def speed(runs: int = 40) -> Speed:
    """A gateway, and the service with a standing approval."""
    with short_dir() as path, a_fleet(path, FORWARDED_ALLOW_IPS="127.0.0.1") as fleet, reacting(path) as (client, _):
        assert token_in(path / "cdn-threat-reaction.token")
        answer = client.call("POST", "/playbooks/ssh-brute-force/approve", {"by": "benchmark"})
        assert answer.status == 200
        client.ban("203.0.113.1")
        _wait(fleet.port, "203.0.113.1")
        contained, answered = [], []
        for run in range(runs):
            address = f"198.51.{run}.7"
            for _ in range(2):
                begun_s = time.perf_counter()
                client.see(address)
                answered.append(time.perf_counter() - begun_s)
            begun_s = time.perf_counter()
            client.see(address)
            _wait(fleet.port, address)
            contained.append(time.perf_counter() - begun_s)
        batch = [{"address": f"100.{n // 250}.{n % 250}.9", "kind": "http_refused"} for n in range(500)]
        begun_s = time.perf_counter()
        for _ in range(20):
            assert client.call("POST", "/sightings", batch).status == 200
        rate = 20 * 500 / (time.perf_counter() - begun_s)
    return Speed(
        contain_p50_ms=1000 * sorted(contained)[runs // 2],
        contain_p95_ms=1000 * sorted(contained)[runs * 95 // 100],
        answer_p50_ms=1000 * sorted(answered)[runs],
        sightings_per_s=rate,
    )


def _wait(port: int, address: str) -> None:
    with Socket(port) as socket:
        while True:
            socket.send(f"GET /nobody/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
            if socket.answer().status == 403:
                return


# -- all together -----------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ssh", type=Path)
    parser.add_argument("--web", type=Path)
    parser.add_argument("--fail2ban", type=Path, default=Path("/"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=("ssh", "web", "speed", "all"), default="all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    has_fail2ban = (arguments.fail2ban / PACKAGES / "fail2ban").is_dir()
    if arguments.part in ("ssh", "all"):
        if arguments.ssh:
            attempts, lines = sshd_log(arguments.ssh)
        else:
            attempts = made_up_sshd_log(arguments.seed)
            lines = [(attempt.sighted.at_s, attempt.line) for attempt in attempts]
        found["ssh"] = [fail2bans_policy(attempts)]
        if has_fail2ban:
            found["ssh"].append(fail2ban_itself(arguments.fail2ban, attempts, lines))
        found["ssh"] += [ours(attempts, mode) for mode in (OodaMode.OFF, OodaMode.ON)]
    if arguments.part in ("web", "all"):
        requests = web_log(arguments.web) if arguments.web else made_up_web_log(arguments.seed)
        found["web"] = [ours(requests, OodaMode.ON)]
    if arguments.part in ("speed", "all"):
        found["speed"] = speed()
    if arguments.json:
        print(json.dumps(to_builtins(found), indent=1))
        return
    for part in ("ssh", "web"):
        for one in found.get(part, ()):
            print(
                f"{part}  {one.policy:30}  {one.let_through:5} of {one.attempts} through; {one.banned} addresses, "
                f"{one.networks_banned} networks banned; {one.honest_held_off} of {one.honest} honest held off "
                f"({one.honest_banned} people)"
            )
    if "speed" in found:
        print(to_builtins(found["speed"]))


if __name__ == "__main__":
    main()
