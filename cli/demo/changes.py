"""What each loop saw, what it changed, and what that did: rows of a table, from the services' own answers. Pure.

An answer is that of ``GET /ooda``. Of a loop whose process was killed on the way there are several, the earliest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cli.rendering import ABSENT, Cell, Screen, clean, columns, table

Loop = Mapping[str, Any]
Cycle = Mapping[str, Any]
_BRIEF = 60
_GAPS = 6
_COLOURS = {"kept": "green", "undone": "yellow", "failed": "red", "settling": "cyan"}


class Row(NamedTuple):
    """One loop."""

    service: str
    mode: str
    saw: str
    changed: str
    """``nothing: …`` where it has changed nothing."""
    before: float | None
    after: float | None
    unit: str
    """Of before and after."""
    verdict: str
    """The loop's own: kept, undone, failed, settling; empty where it has changed nothing."""
    kept: int
    undone: int
    failed: int


class _Measure(NamedTuple):
    times: float
    unit: str


MEASURES = {
    "atlas": _Measure(1, "restarts in vain"),
    "gateway-primary": _Measure(1e3, "ms, a failure as 20 answers"),
    "cdn-data-fabric": _Measure(1e3, "ms of CPU a question"),
    "cdn-threat-intel": _Measure(100, "% of judged values wrong"),
    "cdn-threat-reaction": _Measure(1, "sightings a second"),
    "cdn-statistical": _Measure(100, "% error of quantiles"),
    "cdn-monitoring": _Measure(1, "s that a surprise is unseen"),
    "cdn-geospatial": _Measure(1e-3, "ms of work a second"),
    "glaf-graph-server": _Measure(1, "ms of CPU a question"),
    "cdn-isolated-monitoring": _Measure(1, "s to find out"),
}
"""Of each loop's cost."""
OTHERS = {
    ("glaf-graph-server", "Refresh"): _Measure(1, "s old, or ms of upkeep a write"),
    ("cdn-threat-intel", "SetGuard"): _Measure(1, "µs a look-up"),
    ("cdn-threat-intel", "Cool"): _Measure(2**-20, "MiB"),
    ("cdn-threat-intel", "Warm"): _Measure(1, "µs a look-up"),
}
"""Of decisions that are to lower something else, by their type."""


def row(service: str, loops: Sequence[Loop]) -> Row:
    """What came of one loop: of several changes the first that was kept, else the last."""
    acted = [cycle for loop in loops for cycle in loop.get("actions") or [] if cycle.get("acted")]
    counts = [sum(loop.get(word) or 0 for loop in loops) for word in ("kept", "undone", "failed")]
    mode = str(loops[-1].get("mode")) if loops else "unknown"
    measure = MEASURES.get(service, _Measure(1, ""))
    if not acted:
        cycles = [cycle for loop in loops for cycle in loop.get("cycles") or []]
        eventful = [cycle for cycle in cycles if _told(_SAW, service, cycle)] or cycles
        saw = _told(_SAW, service, eventful[-1]) if eventful else ""
        why = "that was no reason to" if saw else "nothing happened that concerns it"
        return Row(service, mode, saw or ABSENT, f"nothing: {why}", None, None, measure.unit, "", *counts)
    cycle = next((one for one in acted if (one.get("effect") or {}).get("verdict") == "kept"), acted[-1])
    effect, decision = cycle.get("effect") or {}, cycle.get("decision")
    kind = decision.get("type") if isinstance(decision, Mapping) else None
    measure = OTHERS.get((service, str(kind)), measure)
    before, after = (_scaled(effect.get(word), measure.times) for word in ("before", "after"))
    changed = _told(_CHANGED, service, cycle) or _brief(decision)
    saw = _told(_SAW, service, cycle) or ABSENT
    return Row(service, mode, saw, changed, before, after, measure.unit, str(effect.get("verdict")), *counts)


def lines(rows: Sequence[Row], screen: Screen) -> list[str]:
    """The table: four columns where there is room, else two of which the last wraps."""
    four = [
        [_name(one), Cell(clean(one.saw)), _change(one), Cell(effect(one), _COLOURS.get(one.verdict, ""))]
        for one in rows
    ]
    heads = ["SERVICE", "ITS LOOP SAW", "CHANGED", "BEFORE → AFTER"]
    widths = [max(columns(line[n].text) for line in [[Cell(head) for head in heads], *four]) for n in range(4)]
    if screen.width is None or sum(widths) + _GAPS <= screen.width:
        return table(heads, four, screen)
    two = []
    for name, saw, changed, after in four:
        parts = [
            changed.text,
            after.text if after.text != ABSENT else "",
            f"it saw {saw.text}" if saw.text != ABSENT else "",
        ]
        two.append([name, Cell("; ".join(part for part in parts if part))])
    return table(["SERVICE", "WHAT ITS LOOP CHANGED"], two, screen)


def effect(one: Row) -> str:
    """What the change did, in words."""
    if not one.verdict:
        return ABSENT
    if one.before is None:
        return f"{one.verdict}, by nothing that could be measured"
    if one.after is None:
        return f"{_number(one.before)} {one.unit}; not judged yet"
    return f"{_number(one.before)} → {_number(one.after)} {one.unit}, {one.verdict}"


def _name(one: Row) -> Cell:
    return Cell(clean(one.service), "bold")


def _change(one: Row) -> Cell:
    more = one.kept + one.undone + one.failed - (one.verdict in ("kept", "undone", "failed"))
    return Cell(clean(one.changed) + (f" (and {more} more)" if more > 0 else ""), "" if one.verdict else "dim")


def _scaled(value: Any, times: float) -> float | None:
    return value * times if isinstance(value, int | float) else None


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _brief(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _BRIEF else text[: _BRIEF - 1] + "…"


def _told(words: Mapping[str, Any], service: str, cycle: Cycle) -> str:
    """In words, empty if the service tells it in another form than is known here."""
    try:
        return str(words[service](cycle)) if service in words else ""
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return ""


def _fabric_saw(cycle: Cycle) -> str:
    shapes = cycle["observation"]["shapes"]
    worst = max(shapes, key=lambda shape: shape["calls"] * shape["fullscan_steps"])
    return f"{worst['calls']} questions, each reading {worst['fullscan_steps'] + 1:,.0f} rows of a table"


def _fabric_changed(cycle: Cycle) -> str:
    decision = cycle["decision"]
    spec = decision["spec"]
    names = ", ".join(name for name, _ in spec["columns"])
    return f"{'an index' if decision['do'] == 'create_index' else 'no index any more'} on {spec['table']} ({names})"


def _gateway_saw(cycle: Cycle) -> str:
    services = cycle["observation"]["services"]
    failing = {name: seen for instances in services.values() for name, seen in instances.items() if seen["bad"]}
    if not failing:
        asked = sum(seen["good"] for instances in services.values() for seen in instances.values())
        return f"{asked} answers, none of them a failure"
    name, seen = max(failing.items(), key=lambda one: one[1]["bad"])
    return f"{name} failed {seen['bad']} of {seen['good'] + seen['bad']} times"


def _intel_saw(cycle: Cycle) -> str:
    picture = cycle["picture"]
    return f"{picture['false_alarms'] + picture['missed']} of {picture['judged']} judged values called wrongly"


def _intel_changed(cycle: Cycle) -> str:
    decision = cycle["decision"]
    match decision["type"]:
        case "SetTrust":
            return f"feed {decision['feed']} is trusted {decision['to']:g}, not {decision['was']:g}"
        case "SetAgeing":
            return f"what feed {decision['feed']} says ages {decision['was'] / decision['to']:g} times as fast"
        case "SetGuard":
            return "networks are looked up behind a guard" if decision["up"] else "no guard before networks"
        case kind:
            return f"feed {decision['feed']} is {'kept on disk' if kind == 'Cool' else 'in memory again'}"


def _reaction_saw(cycle: Cycle) -> str:
    worst = max(cycle["observation"]["neighbourhoods"], key=lambda one: one["points"])
    return f"{worst['offenders']} offenders in {worst['prefix']}"


def _reaction_changed(cycle: Cycle) -> str:
    is_ban = cycle["observation"]["may"] == "ban"
    prefix = cycle["decision"]["prefix"]
    return f"{prefix} is banned as one" if is_ban else f"a person is asked about {prefix}"


def _statistical_saw(cycle: Cycle) -> str:
    seen = cycle["observation"]
    return f"{seen['samples_per_s']:,.0f} samples a second of {seen['series']} series"


def _monitoring_saw(cycle: Cycle) -> str:
    seen = cycle["observation"]
    return f"{seen['surprises']} surprises among {seen['targets']} targets"


def _geospatial_saw(cycle: Cycle) -> str:
    load = max(cycle["observation"]["loads"], key=lambda one: one["reads_per_s"] + one["writes_per_s"])
    return f"{load['reads_per_s']:.0f} looks a second over {load['features']:,} features, {load['read_us']:.0f} µs each"


def _geospatial_changed(cycle: Cycle) -> str:
    decision = cycle["decision"]
    if "index" in decision:
        return f"{decision['collection']}: {decision['index']} in the place of {decision['was'][0]}"
    return f"answers of {decision['collection']} are {'kept' if decision['is_on'] else 'not kept'}"


def _graph_saw(cycle: Cycle) -> str:
    seen = cycle["observation"]
    many = seen["sql_reads"] + seen["snapshot_reads"] + seen["pinned_reads"]
    mean_ms = (seen["sql_ms"] + seen["snapshot_ms"]) / max(1, seen["sql_reads"] + seen["snapshot_reads"])
    return f"{many} walks in {seen['elapsed_s']:.0f} s, {mean_ms:.2g} ms of CPU each"


def _graph_changed(cycle: Cycle) -> str:
    decision = cycle["decision"]
    match decision["type"]:
        case "Rebuild":
            return "answers from a snapshot in memory" if decision["snapshot"] else "answers from SQLite again"
        case "Refresh":
            return f"the snapshot catches up every {decision['every_s']:g} s, not {decision['was_s']:g}"
        case _:
            return "a repeated answer is kept ready" if decision["pinned"] else "an answer is not kept ready any more"


def _isolated_saw(cycle: Cycle) -> str:
    picture = cycle["picture"]
    return f"{picture['detection_s']:.2g} s to find out, {picture['cpu_cores']:.1%} of a core"


def _isolated_changed(cycle: Cycle) -> str:
    return f"probes every {cycle['decision']['interval_s']:g} s, not {cycle['picture']['interval_s']:g}"


def _atlas_saw(cycle: Cycle) -> str:
    failing = [one["name"] for one in cycle["observation"]["failing"]]
    if not failing:
        return ""
    return f"{', '.join(failing)} failed" + (", alone" if len(failing) == 1 else "")


def _atlas_changed(cycle: Cycle) -> str:
    return "; ".join(f"restarts of {hold['name']} wait: {hold['reason']}" for hold in cycle["decision"])


_SAW = {
    "atlas": _atlas_saw,
    "gateway-primary": _gateway_saw,
    "cdn-data-fabric": _fabric_saw,
    "cdn-threat-intel": _intel_saw,
    "cdn-threat-reaction": _reaction_saw,
    "cdn-statistical": _statistical_saw,
    "cdn-monitoring": _monitoring_saw,
    "cdn-geospatial": _geospatial_saw,
    "glaf-graph-server": _graph_saw,
    "cdn-isolated-monitoring": _isolated_saw,
}
_CHANGED = {
    "atlas": _atlas_changed,
    "gateway-primary": lambda cycle: "{instance} gets {weight:g} of its weight".format(**cycle["decision"]),
    "cdn-data-fabric": _fabric_changed,
    "cdn-threat-intel": _intel_changed,
    "cdn-threat-reaction": _reaction_changed,
    "cdn-statistical": lambda cycle: f"memory: {cycle['decision']}",
    "cdn-monitoring": lambda cycle: "intervals of scrapes shared out anew",
    "cdn-geospatial": _geospatial_changed,
    "glaf-graph-server": _graph_changed,
    "cdn-isolated-monitoring": _isolated_changed,
}
