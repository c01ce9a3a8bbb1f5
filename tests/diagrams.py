"""The generated parts of docs/: drawn from the code's own tables. ``python -m tests.diagrams`` writes them anew."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import UnionType

from bus import messages
from cdn_daemon.lifecycle import TRANSITIONS, ExitCode
from cli.exits import Exit
from cli.main import ALIASES, COMMANDS
from tests.support import ROOT

PACKAGES = ("bus", "cdn_daemon", "cli", "services")


def fill(text: str) -> str:
    """The document with every part between ``<!-- drawn: NAME -->`` and ``<!-- end -->`` as it is now."""

    def part(found: re.Match[str]) -> str:
        return f"<!-- drawn: {found[1]} -->\n{DRAWN[found[1]]()}<!-- end -->"

    return re.sub(r"<!-- drawn: (\w+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


def lifecycle() -> str:
    """Phases of a process, from its table."""
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (before, event), (after, _) in TRANSITIONS.items():
        if after is not before:
            arrows[before, after].append(event)
    lines = [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()]
    return "\n".join(
        ["```mermaid", "stateDiagram-v2", "    [*] --> starting", *lines, "    stopped --> [*]", "```", ""]
    )


def floors() -> str:
    """Which package imports which, from the imports."""
    edges = sorted({(package, other) for package in PACKAGES for other in _imported(package)})
    lines = [f"    {package} --> {other}" for package, other in edges]
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


def _imported(package: str) -> Iterator[str]:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module] if module else [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                other = name.split(".")[0]
                if other in PACKAGES and other != package:
                    yield other


def vocabulary() -> str:
    """Every message by the plane that carries it, with the first line of its description."""
    planes = {
        "telemetry: published by daemons, wardens and ATLAS": messages.Telemetry,
        "commands: from ATLAS to a daemon (`body` of a `command`)": messages.DaemonCommand,
        "commands: from ATLAS to a warden (`body` of a `command`)": messages.NodeCommand,
        "commands: what daemons and wardens say to ATLAS": messages.AgentMessage,
        "operators: asked of ATLAS": messages.OperatorRequest,
        "operators: answered by ATLAS": messages.OperatorReply,
    }
    return "\n".join(f"**{title}**\n\n{_table(union)}" for title, union in planes.items())


def _table(union: UnionType) -> str:
    lines = ["| `type` | fields | |", "|---|---|---|"]
    for struct in union.__args__:
        tag = struct.__struct_config__.tag
        first_line = (struct.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("|", "\\|")
        fields = " ".join(f"`{name}`" for name in struct.__struct_fields__) or "-"
        lines.append(f"| `{tag}` | {fields} | {first_line} |")
    return "\n".join([*lines, ""])


def facts() -> str:
    """What services tell each other, kind by kind, field by field."""
    source = ast.parse((ROOT / "bus/messages.py").read_text())
    structs = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    return "\n".join(
        _fields(structs[kind.__name__], f"`{kind.__struct_config__.tag}`, version {kind.VERSION}")
        for kind in messages.Vocabulary.__args__
    )


def exits() -> str:
    """Exit codes: of a service to its supervisor, and of cdnctl to a script."""
    lines = ["| a service ends with | |", "|---|---|"]
    lines += [f"| {int(code)} | {_words(code, ExitCode)} |" for code in ExitCode]
    lines += ["", "| cdnctl ends with | |", "|---|---|"]
    lines += [f"| {int(code)} | {_words(code, Exit)} |" for code in Exit]
    return "\n".join([*lines, ""])


def _words(member: ExitCode | Exit, of: type[ExitCode] | type[Exit]) -> str:
    """The string that stands below a member of an enumeration, in its source."""
    module = ast.parse((ROOT / f"{of.__module__.replace('.', '/')}.py").read_text())
    (body,) = (node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == of.__name__)
    for assignment, following in pairwise(body):
        if isinstance(assignment, ast.Assign) and ast.unparse(assignment.targets[0]) == member.name:
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            return " ".join(str(following.value.value).split()).rstrip(".")
    raise LookupError(member)


def verbs() -> str:
    """Every command of cdnctl."""
    lines = ["| `cdnctl …` | |", "|---|---|"]
    also = {name: alias for alias, name in ALIASES.items()}
    for name, line in COMMANDS.items():
        lines.append(f"| `{name}`{f' (`{also[name]}`)' if name in also else ''} | {line.rstrip('.')} |")
    return "\n".join([*lines, ""])


def schemas() -> str:
    """What stands in cdnctl's JSON documents, field by field, from the vocabulary."""
    source = ast.parse((ROOT / "bus/messages.py").read_text())
    structs = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    names = ("ServiceView", "Event", "CommandView", "IncarnationView", "StatusSample")
    return "\n".join(_fields(structs[name], name) for name in names)


def _fields(struct: ast.ClassDef, title: str) -> str:
    lines = [f"**{title}**: {_first_line(struct)}", "", "| field | type | |", "|---|---|---|"]
    for field, following in pairwise([*struct.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign):
            said = following.value if isinstance(following, ast.Expr) else None
            text = " ".join(str(said.value).split()) if isinstance(said, ast.Constant) else ""
            kind = ast.unparse(field.annotation).replace("|", "\\|")
            lines.append(f"| `{ast.unparse(field.target)}` | {kind} | {text.rstrip('.')} |")
    return "\n".join([*lines, ""])


def _first_line(struct: ast.ClassDef) -> str:
    return (ast.get_docstring(struct) or "").splitlines()[0].rstrip(".")


DRAWN = {
    "lifecycle": lifecycle,
    "floors": floors,
    "vocabulary": vocabulary,
    "facts": facts,
    "exits": exits,
    "verbs": verbs,
    "schemas": schemas,
}


def main() -> None:
    """Write every document anew."""
    for path in sorted(Path(ROOT, "docs").glob("*.md")):
        text = path.read_text()
        if fill(text) != text:
            path.write_text(fill(text))


if __name__ == "__main__":
    main()
