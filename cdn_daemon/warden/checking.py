"""``python -m cdn_daemon.warden.checking CONF``: whether supervisord with the warden would start with that file.

Prints one JSON object: ``problems``, in words; ``has_warden``; and ``programs`` as supervisor reads them. Starts,
makes and changes nothing. cdnctl doctor runs it as a process of its own, as it imports nothing of the warden.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import msgspec
from supervisor.options import ServerOptions, make_namespec

from cdn_daemon.warden import depends, settings

_WARDEN = "cdn_daemon.warden"


def check(conf: Path) -> dict[str, Any]:
    """What supervisor and then the warden say of it."""
    options, said = ServerOptions(), io.StringIO()
    options.stderr = said
    try:
        options.realize(["-c", str(conf)], doc="", progname="supervisord")
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if line and not line.startswith("For help")]
        return {"problems": [" ".join(lines).removeprefix("Error: ")], "has_warden": False, "programs": []}
    configs = {
        make_namespec(group.name, process.name): process
        for group in options.process_group_configs
        for process in group.process_configs
    }
    warden = [extras for _, factory, extras in options.rpcinterface_factories if factory.__module__ == _WARDEN]
    return {
        "problems": _refused(conf, configs, warden[0], options.environ_expansions) if warden else [],
        "has_warden": bool(warden),
        "programs": [
            {
                "name": name,
                "command": process.command,
                "directory": process.directory,
                "environment": process.environment,
                "log": process.stdout_logfile if isinstance(process.stdout_logfile, str) else None,
            }
            for name, process in configs.items()
        ],
    }


def _refused(conf: Path, configs: dict[str, Any], defaults: dict[str, str], expansions: dict[str, str]) -> list[str]:
    """What the warden would not start with."""
    problems = []
    wanted = {}
    try:
        settings.check_defaults(defaults)
        own = settings.read(conf, expansions)
    except settings.SettingsError as error:
        return [str(error)]
    for name, process in configs.items():
        try:
            told = settings.settings_of(name, process.command, own.get(process.name, {}), defaults, process.uid)
        except settings.SettingsError as error:
            problems.append(str(error))
        else:
            wanted[name] = told.depends_on
    try:
        depends.resolve({name: wanted.get(name, ()) for name in configs})
    except settings.SettingsError as error:
        problems.append(str(error))
    return problems


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(check(Path(sys.argv[1]))).decode())
