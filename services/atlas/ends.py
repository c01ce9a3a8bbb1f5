"""Gathers the post-mortems that this host's warden leaves, so that they outlive the few that it keeps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bus import postmortems
from bus.postmortems import Filed

AT_ONCE = 200
"""Read in one look, so that the first one after a long absence does not hold up the rest."""
SETTLED_S = 2.0
"""A directory that was changed more recently may be so again without its time telling."""
_INTEGER_MOST = (1 << 63) - 1
"""SQLite's."""


class Ends:
    """What is new in the directory of post-mortems. Raises no error for what cannot be read."""

    def __init__(self, directory: Path, known: Iterable[str] = ()) -> None:
        """known: keys of those that need not be read again."""
        self._directory = directory
        self._known = set(known)
        self._settled: dict[str, int] = {}
        self._seen: dict[str, set[str]] = {}

    def look(self, now_s: float) -> list[Filed]:
        """Those that are new since the last look whose result was ``taken``. now_s is Unix time."""
        found: list[Filed] = []
        try:
            programs = [entry for entry in os.scandir(self._directory) if entry.is_dir(follow_symlinks=False)]
            for program in programs:
                changed_ns = program.stat(follow_symlinks=False).st_mtime_ns
                if self._settled.get(program.name) == changed_ns:
                    continue
                new = self._new(program.name)
                found += new
                if len(found) >= AT_ONCE:
                    return found
                if not new and abs(now_s - changed_ns / 1e9) > SETTLED_S:
                    self._settled[program.name] = changed_ns
        except (FileNotFoundError, NotADirectoryError):
            return found  # nothing has ended yet, or a directory has gone in this moment
        gone = self._seen.keys() - {program.name for program in programs}
        for name in gone:
            del self._seen[name]
            self._settled.pop(name, None)
        return found

    def _new(self, program: str) -> list[Filed]:
        of_program = self._directory / program
        files = postmortems.listed(of_program)
        before = self._seen.get(program, set())
        new = [file for file in files if file not in before and file.removesuffix(".json") not in self._known]
        self._seen[program] = before & set(files)
        found = []
        for file in new:
            filed = postmortems.load(of_program / file)
            if filed is not None and _is_sane(filed):
                found.append(filed)
            else:
                self._seen[program].add(file)  # it will not become better
        return found

    def taken(self, found: Iterable[Filed]) -> None:
        """These are in the history."""
        for filed in found:
            self._seen.setdefault(filed.path.parent.name, set()).add(filed.path.name)


def _is_sane(filed: Filed) -> bool:
    report = filed.report
    return max(abs(report.pid), abs(report.incarnation or 0)) <= _INTEGER_MOST and 0 <= report.lived_s < 1e11
