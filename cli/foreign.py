"""Words of supervisorctl, systemctl, circusctl, pm2 and docker that are called otherwise here. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_UPDATE = "supervisorctl -c supervisord.conf update"

ELSEWHERE = {
    "list": "cdnctl status",
    "ps": "cdnctl status",
    "avail": "cdnctl status",
    "jlist": "cdnctl status --json",
    "list-units": "cdnctl status",
    "list-dependencies": "cdnctl status, whose REASON says what a service waits for",
    "info": "cdnctl describe NAME",
    "inspect": "cdnctl describe NAME",
    "cat": "cdnctl describe NAME",
    "pid": "cdnctl status NAME --json | jq '.services[].pid'",
    "run": "cdnctl start NAME",
    "shutdown": "cdnctl down",
    "quit": "cdnctl down",
    "halt": "cdnctl down",
    "try-restart": "cdnctl restart NAME",
    "condrestart": "cdnctl restart NAME",
    "gracefulreload": "cdnctl restart NAME --rolling",
    "incr": "cdnctl scale NAME N",
    "decr": "cdnctl scale NAME N",
    "mask": "cdnctl disable NAME",
    "unmask": "cdnctl enable NAME",
    "is-enabled": "cdnctl status NAME -o wide, whose MARKS has what is disabled",
    "reset": "cdnctl reset-failed NAME",
    "log": "cdnctl logs NAME",
    "tail": "cdnctl logs NAME -f",
    "maintail": "tail run/supervisord.log",
    "journal": "cdnctl events",
    "monit": "cdnctl top",
    "stats": "cdnctl top",
    "reread": _UPDATE,
    "update": _UPDATE,
    "daemon-reload": _UPDATE,
    "add": f"a [program:NAME] in supervisord.conf, then {_UPDATE}",
    "remove": f"take [program:NAME] out of supervisord.conf, then {_UPDATE}",
    "delete": f"take [program:NAME] out of supervisord.conf, then {_UPDATE}",
    "edit": f"an editor on supervisord.conf, then {_UPDATE}",
    "fg": "cdnctl logs NAME -f; supervisorctl has fg",
    "clear": "supervisorctl -c supervisord.conf clear NAME",
    "flush": "supervisorctl -c supervisord.conf clear all",
    "save": "nothing: supervisord.conf is the list",
    "startup": "a unit of systemd: docs/deploying.md",
}
"""Their word → what does it here."""


def advice(word: str, commands: Iterable[str]) -> str:
    """What somebody may have meant who typed that; empty if nothing comes to mind."""
    if word in ELSEWHERE:
        return f"here that is: {ELSEWHERE[word]}"
    near = get_close_matches(word, list(commands), n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""
