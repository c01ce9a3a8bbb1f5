"""A fleet to do faults to: a real supervisord with the warden, a real ATLAS, services, and the history they keep."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from bus.endpoints import RunDir, prepare
from bus.ids import new_id
from bus.messages import (
    Event,
    FleetReply,
    FleetRequest,
    IncarnationView,
    OrderOutcome,
    OrderRequest,
    PostMortem,
    ServiceView,
    Verb,
)
from bus.operators import AtlasSilent, OperatorLink
from bus.postmortems import directory_of, read
from services.atlas.api import EventsAnswer, IncarnationsAnswer
from tests.faults.injections import Victim, ask
from tests.support import Supervisord, until

A = TypeVar("A")

ATLAS = {"command": "python -m services.atlas"}
FAULTY = {"command": "python -m tests.faults.faulty", "type": "notify"}


def faulty(**options: str) -> dict[str, str]:
    """The program of a faulty service; upper-case options are its environment."""
    told = ",".join(f'{key}="{value}"' for key, value in options.items() if key.isupper())
    keys = {key: value for key, value in options.items() if not key.isupper()}
    return {**FAULTY, **({"environment": told} if told else {}), **keys}


class Fleet:
    """Those programs and ``atlas`` in a run directory; in a ``with`` all of them are ready."""

    def __init__(
        self,
        run_path: Path,
        programs: Mapping[str, Mapping[str, str]],
        *,
        atlas: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.run_path = run_path
        self.run_dir = prepare(RunDir(run_path))
        self.supervisord = Supervisord(
            run_path, {"atlas": atlas or ATLAS, **programs}, env={"CDN_PORT": "0", **(env or {})}
        )

    def __enter__(self) -> Fleet:
        self.supervisord.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            print(self.reply())  # pytest shows it with the failure
            for log in sorted(self.run_path.glob("*.log")):
                print(f"-- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        self.supervisord.stop()

    # -- as it is now ------------------------------------------------------------------------------------------

    def reply(self) -> FleetReply | None:
        """What ATLAS says of the fleet; None if it is silent."""
        request = FleetRequest(id=new_id())
        link = OperatorLink(self.run_dir.operators)
        try:
            link.request(request, timeout_s=5)
            reply = next(link.replies(request.id, timeout_s=5))
        except AtlasSilent:
            return None
        finally:
            link.close()
        assert isinstance(reply, FleetReply)
        return reply

    def view(self, name: str) -> ServiceView | None:
        """One of it, by ATLAS' word."""
        reply = self.reply()
        return next((view for view in reply.services if view.instance == name), None) if reply else None

    def serving(self, name: str, *, after: Victim | None = None) -> Victim:
        """Wait until it is RUNNING and healthy by ATLAS' word, and answers itself; another process than ``after``."""

        def found() -> Victim | None:
            view = self.view(name)
            if view is None or (view.state, view.health) != ("RUNNING", "healthy"):
                return None
            if view.pid is None or view.address is None or (after is not None and view.pid == after.pid):
                return None
            victim = Victim(name, view.pid, view.address, self.run_path)
            return victim if is_answering(victim) else None

        what = f"{name} serves" + (f" in place of pid {after.pid}" if after else "")
        victim = until(found, within_s=60.0, what=what)
        assert victim is not None
        return victim

    def shown(self, name: str, *states: str, within_s: float = 60.0) -> ServiceView:
        """Wait until ATLAS shows it in one of those states."""

        def found() -> ServiceView | None:
            view = self.view(name)
            return view if view is not None and view.state in states else None

        view = until(found, within_s=within_s, every_s=0.1, what=f"{name} is {' or '.join(states)}")
        assert view is not None
        return view

    def order(self, verb: Verb, name: str) -> OrderOutcome:
        """Give an order and wait for its outcome."""
        request = OrderRequest(id=new_id(), verb=verb, names=(name,), timeout_s=60, asked_by="test")
        link = OperatorLink(self.run_dir.operators)
        try:
            link.request(request, timeout_s=30)
            replies = link.replies(request.id, timeout_s=90)
            return next(reply for reply in replies if isinstance(reply, OrderOutcome))
        finally:
            link.close()

    # -- history -----------------------------------------------------------------------------------------------

    def asked(self, path: str, type_: type[A]) -> A | None:
        """Answer of ATLAS' ``/api/v1/…``, waited for while it is silent or busy; None for 404."""
        found = until(lambda: self._answer(path, type_), within_s=60.0, what=f"ATLAS answers {path}")
        return found[0] if found else None

    def _answer(self, path: str, type_: type[A]) -> tuple[A | None] | None:
        view = self.view("atlas")
        if view is None or view.address is None:
            return None
        try:
            with urllib.request.urlopen(f"{view.address}/api/v1/{path}", timeout=30) as answer:
                return (msgspec.json.decode(answer.read(), type=type_),)
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in (404, 503):
                    raise AssertionError(f"{path}: {error.read()!r}") from error
            return (None,) if error.code == 404 else None
        except OSError:
            return None

    def lives(self, name: str) -> list[IncarnationView]:
        """All that ATLAS remembers of them, oldest first."""
        found = self.asked(f"services/{name}/incarnations?limit=100", IncarnationsAnswer)
        return found.incarnations[::-1] if found else []

    def ends(self, name: str) -> list[IncarnationView]:
        """Those lives that have ended, and of which there is a post-mortem; in full."""
        keys = [life.key for life in self.lives(name) if life.end]
        found = [self.asked(f"services/{name}/incarnations/{key}", IncarnationView) for key in keys]
        return [life for life in found if life is not None]

    def end(self, name: str, number: int = 0) -> IncarnationView:
        """Wait until history has that end of it, 0 being the first; all that is told of it."""
        return until(lambda: self.ends(name)[number : number + 1], within_s=60.0, what=f"end {number} of {name}")[0]

    def events(self, name: str = "", kind: str = "") -> list[Event]:
        """What ATLAS remembers to have happened, oldest first."""
        query = "&".join(f"{key}={value}" for key, value in (("service", name), ("kind", kind)) if value)
        found = self.asked(f"events?limit=1000&{query}", EventsAnswer)
        return found.events[::-1] if found else []

    def post_mortems(self, name: str) -> list[PostMortem]:
        """What the warden has written down itself, oldest first."""
        return read(directory_of(self.run_dir), name)

    def assert_undisturbed(self, *victims: Victim) -> None:
        """History knows no end of these, and each is the process that it was."""
        for victim in victims:
            assert self.serving(victim.name).pid == victim.pid
            (life,) = until(lambda name=victim.name: self.lives(name))  # type: ignore[misc]
            assert (life.pid, life.ended_s, life.end) == (victim.pid, None, "")
            assert self.post_mortems(victim.name) == []


def is_answering(victim: Victim) -> bool:
    """Whether that very process answers."""
    try:
        return ask(victim, "/") == str(victim.pid).encode()
    except OSError:
        return False
