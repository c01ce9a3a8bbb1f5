"""What the monitor says of itself and of what it watches, in Prometheus' text format 0.0.4. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def labels(**values: str) -> str:
    """``{name="value",…}``, whatever the values hold."""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items()) + "}"


def family(
    name: str, kind: str, help_: str, samples: Iterable[tuple[Mapping[str, str], float | None]], who: Mapping[str, str]
) -> list[str]:
    """The lines of one metric; unknown values are left out, and so is an empty one."""
    lines = [f"{name}{labels(**who, **own)} {float(value):.15g}" for own, value in samples if value is not None]
    return [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", *lines] if lines else []
