"""Orders that supervisord, or the warden in it, carries out when it is told: the way while ATLAS does not answer.

Starting, stopping and restarting take their time and are followed; that is cli/supervised.py.
"""

from __future__ import annotations

from bus.messages import Verb
from cli.atlas import Details
from cli.fallback import UNKNOWN_METHOD, Supervisord, SupervisordRefused

DIRECT = frozenset(
    {Verb.SIGNAL, Verb.ENABLE, Verb.DISABLE, Verb.RESET_FAILED, Verb.MAINTENANCE, Verb.SCALE},
)
"""What a service's daemon would have to do, only ATLAS can tell it."""


class NotDone(Exception):
    """supervisord will not; the text says why."""


def carry_out_at_once(supervisord: Supervisord, verb: Verb, name: str, details: Details) -> str:
    """Have it done, and return what else there is to say. Raises NotDone, and what Supervisord raises if it fails."""
    try:
        return _told(supervisord, verb, name, details)
    except SupervisordRefused as error:
        if error.code == UNKNOWN_METHOD:
            raise NotDone(f"supervisord runs without the warden, which alone can {verb}") from error
        raise NotDone(str(error)) from error


def _told(supervisord: Supervisord, verb: Verb, name: str, details: Details) -> str:
    match verb:
        case Verb.SIGNAL:
            supervisord.signal(name, details.signal or 0)
            return ""
        case Verb.ENABLE:
            return supervisord.tell_warden("enableProcess", name)
        case Verb.DISABLE:
            return supervisord.tell_warden("disableProcess", name)
        case Verb.RESET_FAILED:
            return supervisord.tell_warden("forgetFailures", name)
        case Verb.MAINTENANCE:
            return supervisord.tell_warden("setMaintenance", name, bool(details.on), details.for_s or 0.0)
        case Verb.SCALE:
            note = supervisord.tell_warden("scaleProcess", name, details.instances or 1)
            return note or "ordered; cdnctl status shows when they are ready"
        case _:
            raise NotDone(f"supervisord cannot {verb}")
