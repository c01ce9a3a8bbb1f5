"""In which order programs start and stop. Pure.

A program is started when all that it depends on are ready; what does not depend
on each other starts side by side. At the end it is the other way round, and
among those free to stop, supervisor's ``priority`` decides: highest first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cdn_daemon.warden.settings import SettingsError


def resolve(depends_on: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """Names to process names: a group's name means all its processes.

    Raises SettingsError at a name that there is not, and at a cycle, naming them.
    """
    resolved: dict[str, tuple[str, ...]] = {}
    for name, wanted in depends_on.items():
        found: list[str] = []
        for each in wanted:
            members = [each] if each in depends_on else [other for other in depends_on if other.startswith(f"{each}:")]
            if not members:
                raise SettingsError(f"cannot use depends_on of program {name}: there is no program {each}")
            found.extend(members)
        resolved[name] = tuple(dict.fromkeys(found))
    cycle = find_cycle(resolved)
    if cycle:
        raise SettingsError(f"cannot use depends_on: {' → '.join(cycle)} is a cycle; none of them could ever start")
    return resolved


def find_cycle(depends_on: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """One cycle, first name repeated at its end; empty if there is none."""
    done: set[str] = set()
    for root in depends_on:
        path = [root]
        rest = [iter(depends_on.get(root, ()))]
        while path:
            following = next(rest[-1], None)
            if following is None:
                done.add(path.pop())
                rest.pop()
            elif following in path:
                return (*path[path.index(following) :], following)
            elif following not in done:
                path.append(following)
                rest.append(iter(depends_on.get(following, ())))
    return ()


def next_to_stop(up: Mapping[str, int], depends_on: Mapping[str, Collection[str]]) -> set[str]:
    """Which of those still up are to be stopped now. up: name → supervisor's priority."""
    needed = {each for name in up for each in depends_on.get(name, ())}
    free = {name for name in up if name not in needed}
    last = max((up[name] for name in free), default=0)
    return {name for name in free if up[name] == last}
