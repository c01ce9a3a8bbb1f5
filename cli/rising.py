"""Waiting for a fleet that was started, until every program of it is ready or has failed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from bus.endpoints import RunDir, host_name
from bus.messages import ProcessState, ServiceView
from cli.atlas import AtlasSilent, Refused, ask_fleet
from cli.fallback import Process, Supervisord, SupervisordSilent, as_view, instance_of
from cli.progress import Mark, Progress
from cli.readiness import Standing, Verdict, judge, stuck
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
        """Where supervisord puts what each of them writes, of those that have been started."""

    def wait(self, timeout_s: float, show: Progress) -> None:
        """Look until none can become ready any more or the time is over; then ``verdicts`` is what there is to say.

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
        by_supervisord = {name: as_view(process, host_name()) for name, process in processes.items()}
        by_atlas = self._ask_atlas() if ATLAS in self._wanted else {}
        self.services = tuple({**by_supervisord, **by_atlas}[name] for name in sorted(by_supervisord | by_atlas))
        lost = self._lost(processes, by_supervisord, now_s)
        self.logs = {name: process.log for name, process in processes.items() if not _waits_unstarted(process)}
        for name in self._wanted:
            view = by_atlas.get(name) or by_supervisord.get(name)
            if view is None:
                self.verdicts[name] = Verdict(Standing.FAILED, "supervisord does not have it")
                continue
            verdict = lost.get(name) or self._judge(view, processes.get(name), now_s)
            unheard = name not in by_atlas and ATLAS in self._wanted and ATLAS not in lost
            if unheard and verdict.standing is Standing.READY:
                verdict = Verdict(Standing.WAITING, "ATLAS does not answer yet")
            self.verdicts[name] = verdict

    def _lost(
        self, processes: Mapping[str, Process], views: Mapping[str, ServiceView], now_s: float
    ) -> dict[str, Verdict]:
        """Those that will not become ready, unless somebody does something."""
        verdicts = {name: self._judge(view, processes[name], now_s) for name, view in views.items()}
        for name in verdicts.keys() - set(self._wanted):
            if processes[name].state is ProcessState.STOPPED:
                why = "STOPPED, and not started by itself" if processes[name].enabled else views[name].reason
                verdicts[name] = Verdict(Standing.FAILED, why)
        failed = {name: verdict for name, verdict in verdicts.items() if verdict.standing is Standing.FAILED}
        needs = {name: process.needs for name, process in processes.items() if _waits_unstarted(process)}
        return {**failed, **stuck(verdicts, needs)}

    def _ask_atlas(self) -> dict[str, ServiceView]:
        try:
            return {view.instance: view for view in ask_fleet(self._run_dir, timeout_s=_ATLAS_S).services}
        except (AtlasSilent, Refused):
            return {}

    def _judge(self, view: ServiceView, process: Process | None, now_s: float) -> Verdict:
        key = (view.state, view.pid, view.phase, view.health)
        known = self._since.get(view.instance)
        if known is None or known[0] != key:
            known = self._since[view.instance] = (key, now_s)
        return judge(view, for_s=now_s - known[1], says_ready=process is not None and process.says_ready)


def _waits_unstarted(process: Process) -> bool:
    """Whether it has no process since what it needs is not ready."""
    return (
        bool(process.needs) and process.pid is None and process.state in (ProcessState.STOPPED, ProcessState.STARTING)
    )
