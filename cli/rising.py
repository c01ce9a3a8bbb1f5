"""Waiting for a fleet that was started, until every program of it is ready or has failed."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from bus.endpoints import RunDir, host_name
from bus.messages import ServiceView
from cli.atlas import AtlasSilent, Refused, ask_fleet
from cli.fallback import Supervisord, SupervisordSilent, as_view, instance_of
from cli.progress import Mark, Progress
from cli.readiness import Standing, Verdict, judge
from cli.selection import ATLAS

_LOOK_S = 0.1
_ATLAS_S = 0.3
_MARKS = {Standing.WAITING: Mark.WAITING, Standing.READY: Mark.DONE, Standing.FAILED: Mark.FAILED}


class Rise:
    """What was seen of the wanted programs, and since when each is as it is."""

    def __init__(self, run_dir: RunDir, wanted: Collection[str]) -> None:
        self._run_dir = run_dir
        self._supervisord = Supervisord(run_dir)
        self._wanted = wanted
        self._since: dict[str, tuple[object, float]] = {}
        self.services: tuple[ServiceView, ...] = ()
        """The fleet as it was seen last."""
        self.verdicts: dict[str, Verdict] = {}
        self.logs: dict[str, Path | None] = {}
        """Where supervisord puts what each of them writes."""

    def wait(self, timeout_s: float, show: Progress) -> None:
        """Look until nothing is to be waited for or the time is over; then ``verdicts`` is what there is to say.

        Raises NoSupervisord if supervisord ends meanwhile, SupervisordSilent if it was silent to the end.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                self.look(time.monotonic())
            except SupervisordSilent:  # starting many at once keeps it busy
                if time.monotonic() > deadline_s:
                    raise
            for name, verdict in self.verdicts.items():
                show.show(name, verdict.text, _MARKS[verdict.standing])
            show.tick()
            unseen = len(self._wanted) - len(self.verdicts)
            waiting = unseen or any(verdict.standing is Standing.WAITING for verdict in self.verdicts.values())
            if not waiting or time.monotonic() > deadline_s:
                return
            time.sleep(_LOOK_S)

    def look(self, now_s: float) -> None:
        """Ask, and judge every wanted program."""
        processes = {instance_of(process): process for process in self._supervisord.processes()}
        self.logs = {name: process.log for name, process in processes.items()}
        by_supervisord = {name: as_view(process, host_name()) for name, process in processes.items()}
        by_atlas = self._ask_atlas() if ATLAS in self._wanted else {}
        self.services = tuple({**by_supervisord, **by_atlas}[name] for name in sorted(by_supervisord | by_atlas))
        atlas_failed = ATLAS in by_supervisord and self._judge(by_supervisord[ATLAS], now_s).standing is Standing.FAILED
        for name in self._wanted:
            view = by_atlas.get(name) or by_supervisord.get(name)
            if view is None:
                self.verdicts[name] = Verdict(Standing.FAILED, "supervisord does not have it")
                continue
            verdict = self._judge(view, now_s)
            unheard = name not in by_atlas and ATLAS in self._wanted and not atlas_failed
            if unheard and verdict.standing is Standing.READY:
                verdict = Verdict(Standing.WAITING, "ATLAS does not answer yet")
            self.verdicts[name] = verdict

    def _ask_atlas(self) -> dict[str, ServiceView]:
        try:
            return {view.instance: view for view in ask_fleet(self._run_dir, timeout_s=_ATLAS_S).services}
        except (AtlasSilent, Refused):
            return {}

    def _judge(self, view: ServiceView, now_s: float) -> Verdict:
        key = (view.state, view.pid, view.phase, view.health)
        known = self._since.get(view.instance)
        if known is None or known[0] != key:
            known = self._since[view.instance] = (key, now_s)
        return judge(view, for_s=now_s - known[1])
