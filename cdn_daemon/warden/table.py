"""supervisord's process table as the warden holds it: each program with supervisor's object of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from bus.messages import ProcessRow, ProcessState
from cdn_daemon.warden import depends, reach
from cdn_daemon.warden.program import Program
from cdn_daemon.warden.reach import Process, Supervisord
from cdn_daemon.warden.settings import Settings, SettingsError, read, settings_of


class Table:
    """The programs, by supervisor's full names."""

    def __init__(self, supervisord: Supervisord, defaults: Mapping[str, str], log: Callable[[str], None]) -> None:
        """All programs of supervisord.conf; SettingsError if it says something impossible of one."""
        self._supervisord = supervisord
        self._defaults = dict(defaults)
        self._log = log
        self.programs: dict[str, Program] = {}
        self.processes: dict[str, Process] = {}
        self.depends_on: dict[str, tuple[str, ...]] = {}
        self._conf, self._expansions = reach.conf_file(supervisord)  # now: daemonising may change the directory
        told = read(self._conf, self._expansions)
        for process in reach.processes(supervisord):
            self._put(process, self._settings(process, told))
        self.depends_on = depends.resolve(self._wanted())

    def add(self, process: Process, of: str | None = None) -> Program:
        """Take in a program that was added to the running supervisord; ``of``: as a further instance of that one.

        It is too late to refuse: what is impossible is logged and left out.
        """
        first = self.programs.get(of) if of is not None else None
        try:
            told = first.settings if first is not None else None
            program = self._put(process, told or self._settings(process, read(self._conf, self._expansions)))
        except SettingsError as error:
            self._log(f"{error}; it is treated as if nothing were set")
            program = self._put(process, Settings())
        program.of = of
        program.has_notified = first is not None and first.has_notified
        try:
            self.depends_on = depends.resolve(self._wanted())
        except SettingsError as error:
            self._log(f"{error}; {program.name} waits for nobody")
            self.depends_on[program.name] = ()
        return program

    def forget_absent(self) -> list[str]:
        """Drop the programs that supervisord no longer has; their names."""
        present = {reach.full_name(process) for process in reach.processes(self._supervisord)}
        absent = sorted(set(self.programs) - present)
        for name in absent:
            self.programs[name].removed = True  # its process object may still be asked in this turn of the loop
            del self.programs[name]
            del self.processes[name]
            self.depends_on.pop(name, None)
        for name, wanted in self.depends_on.items():
            self.depends_on[name] = tuple(each for each in wanted if each not in absent)
        return absent

    def waits_for(self, name: str) -> tuple[str, ...]:
        """What a program depends on that is not ready."""
        wanted = self.depends_on.get(name, ())
        return tuple(each for each in wanted if not self.programs[each].is_ready) if wanted else ()

    def is_on_its_way(self, name: str) -> bool:
        """Whether a program that is not ready will be, without anybody doing anything."""
        program = self.programs[name]
        if program.state is ProcessState.STOPPED:
            return not program.disabled and reach.wants_first_start(self.processes[name])
        return program.state in (ProcessState.STARTING, ProcessState.BACKOFF) or program.due_s is not None

    def pid_of(self, name: str) -> int | None:
        """Its process now."""
        life = self.programs[name].now
        return life.pid if life is not None else None

    def pids(self) -> list[int]:
        """The processes of all programs."""
        return [life.pid for program in self.programs.values() if (life := program.now) is not None and life.pid]

    def rows(self, now_s: float) -> tuple[ProcessRow, ...]:
        """The table for the bus."""
        return tuple(
            program.row(now_s, self.waits_for(name), self.depends_on.get(name, ()))
            for name, program in self.programs.items()
        )

    def still_up(self) -> dict[str, int]:
        """Programs that must be stopped before supervisord may end, with their priorities."""
        return {
            name: reach.priority(process) for name, process in self.processes.items() if not reach.is_stopped(process)
        }

    def _wanted(self) -> dict[str, tuple[str, ...]]:
        return {name: program.settings.depends_on for name, program in self.programs.items()}

    def _settings(self, process: Process, told: Mapping[str, Mapping[str, str]]) -> Settings:
        own = told.get(process.config.name, {})
        config = process.config
        return settings_of(reach.full_name(process), config.command, own, self._defaults, config.uid)

    def _put(self, process: Process, settings: Settings) -> Program:
        name = reach.full_name(process)
        program = Program(
            name=name,
            settings=settings,
            log=reach.log_path(process),
            error_log=reach.error_log_path(process),
            state=reach.state(process),
        )
        self.programs[name] = program
        self.processes[name] = process
        process.program = program
        return program


def next_incarnation(state: Path) -> int:
    """Count supervisord's starts in its run directory; 1 is the first."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    counter = state / "incarnation"
    before = 0
    with suppress(OSError, ValueError):  # there is none yet, or it was cut short: counting begins anew
        before = int(counter.read_text())
    fresh = state / "incarnation.new"
    fresh.write_text(f"{before + 1}\n")
    fresh.replace(counter)
    return before + 1
