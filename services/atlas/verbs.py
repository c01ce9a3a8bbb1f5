"""What each verb of an order needs, who carries it out, and what makes an order senseless. Pure.

=============  ==================  ==========================  ===================================
verb           carried out by      needs (may have)            done when
=============  ==================  ==========================  ===================================
start          warden                                          the fleet shows it ready
stop           warden                                          the fleet shows it gone
restart        daemon, or warden   (batch)                     the fleet shows another one, ready
signal         warden              signal                      its outcome says so
enable         warden                                          its outcome says so
disable        warden                                          its outcome says so
reset-failed   warden                                          its outcome says so
maintenance    warden              on (for_s)                  its outcome says so
scale          warden              instances                   its outcome says so
shed           daemon                                          its outcome says so
resume         daemon                                          its outcome says so
loop-mode      daemon              mode                        its outcome says so
set-limits     daemon              limits                      its outcome says so
health-check   daemon                                          its outcome says so
=============  ==================  ==========================  ===================================
"""

from __future__ import annotations

from dataclasses import dataclass

from bus.messages import (
    DaemonCommand,
    DisableProcess,
    EnableProcess,
    ForgetFailures,
    HealthCheck,
    NodeCommand,
    OrderRequest,
    ProcessName,
    Restart,
    RestartProcess,
    Resume,
    ScaleProcess,
    SetLimits,
    SetLoopMode,
    SetMaintenance,
    Shed,
    SignalProcess,
    StartProcess,
    StopProcess,
    Verb,
)

FRESH_S = 0.8
"""An order that was asked longer ago is refused. cdnctl waits 1.0 s, then gives it to supervisord: not both."""
MAX_TIMEOUT_S = 3600.0
MAX_NAMES = 2000
_NAME_CHARS = 256
_ID_CHARS = 128


@dataclass(frozen=True)
class Rule:
    """What holds for a verb."""

    past: str
    """For what is done: ``not restarted within 30 s``."""
    by_daemon: bool = False
    """The service's own daemon carries it out; else the warden of its host does."""
    shown: bool = False
    """Done is what the fleet shows; else what the outcome says."""
    needs: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()


RULES = {
    Verb.START: Rule("started", shown=True),
    Verb.STOP: Rule("stopped", shown=True),
    Verb.RESTART: Rule("restarted", by_daemon=True, shown=True, may_have=("batch",)),
    Verb.SIGNAL: Rule("signalled", needs=("signal",)),
    Verb.ENABLE: Rule("enabled"),
    Verb.DISABLE: Rule("disabled"),
    Verb.RESET_FAILED: Rule("reset"),
    Verb.MAINTENANCE: Rule("taken into or out of maintenance", needs=("on",), may_have=("for_s",)),
    Verb.SCALE: Rule("scaled", needs=("instances",)),
    Verb.SHED: Rule("shedding", by_daemon=True),
    Verb.RESUME: Rule("resumed", by_daemon=True),
    Verb.LOOP_MODE: Rule("switched", by_daemon=True, needs=("mode",)),
    Verb.SET_LIMITS: Rule("limited", by_daemon=True, needs=("limits",)),
    Verb.HEALTH_CHECK: Rule("checked", by_daemon=True),
}

_BOUNDS = {"batch": (1, 1000), "signal": (1, 64), "instances": (1, 64), "for_s": (1.0, 30 * 86400.0)}
_ARGUMENTS = ("batch", "signal", "instances", "on", "for_s", "mode", "limits")


def too_late(order: OrderRequest, now_s: float) -> str:
    """Why an order that has lain somewhere is not taken any more, in words; empty if it is."""
    late_s = 0.0 if order.asked_s is None else now_s - order.asked_s
    return f"cannot {order.verb} what was asked {late_s:.1f} s ago: limit {FRESH_S:g}" if late_s > FRESH_S else ""


def objection(order: OrderRequest) -> str:
    """Why an order cannot be taken, in words; empty if it can."""
    if not (0 < len(order.id) <= _ID_CHARS and len(order.asked_by) <= _NAME_CHARS):
        return (
            f"cannot take an order with an id or asked_by of this length: id up to {_ID_CHARS}, asked_by {_NAME_CHARS}"
        )
    if not 0 < len(order.names) <= MAX_NAMES:
        return f"cannot {order.verb} {len(order.names)} names at once: 1 to {MAX_NAMES}"
    for name in order.names:
        if not 0 < len(name) <= _NAME_CHARS:
            return f"cannot {order.verb} {name[:40]!r}: a name has 1 to {_NAME_CHARS} characters"
    if not 0 < order.timeout_s <= MAX_TIMEOUT_S:
        return f"cannot {order.verb} with timeout_s={order.timeout_s:g}: over 0, at most {MAX_TIMEOUT_S:g}"
    return _wrong_argument(order)


def _wrong_argument(order: OrderRequest) -> str:
    rule = RULES[order.verb]
    for name in _ARGUMENTS:
        value = getattr(order, name)
        if value is None:
            if name in rule.needs:
                return f"cannot {order.verb} without {name}: {_limit(name)}"
        elif name not in (*rule.needs, *rule.may_have):
            takers = ", ".join(verb for verb, each in RULES.items() if name in (*each.needs, *each.may_have))
            return f"cannot {order.verb} with {name}={value}: only {takers} takes it"
        elif name in _BOUNDS and not _BOUNDS[name][0] <= value <= _BOUNDS[name][1]:
            return f"cannot {order.verb} with {name}={value}: {_limit(name)}"
    if order.for_s is not None and not order.on:
        return "cannot end maintenance with for_s: it ends at once"
    return ""


def _limit(name: str) -> str:
    match name:
        case "on":
            return "true begins it, false ends it"
        case "mode":
            return "off, shadow or on"
        case "limits":
            return "the bands to be used"
        case _:
            least, most = _BOUNDS[name]
            return f"{least:g} to {most:g}"


def for_warden(order: OrderRequest, process: ProcessName, pid: int | None) -> NodeCommand:
    """The command for the warden, in supervisord's own name for the process; pid: of the one there is."""
    match order.verb:
        case Verb.START:
            return StartProcess(name=process)
        case Verb.STOP:
            return StopProcess(name=process)
        case Verb.RESTART if pid is None:
            return StartProcess(name=process)  # what is down needs no more, and a second copy of it does no harm
        case Verb.RESTART:
            return RestartProcess(name=process, pid=pid)
        case Verb.SIGNAL:
            return SignalProcess(name=process, signal=order.signal or 0, pid=pid)
        case Verb.ENABLE:
            return EnableProcess(name=process)
        case Verb.DISABLE:
            return DisableProcess(name=process)
        case Verb.RESET_FAILED:
            return ForgetFailures(name=process)
        case Verb.MAINTENANCE:
            return SetMaintenance(name=process, on=bool(order.on), for_s=order.for_s)
        case Verb.SCALE:
            return ScaleProcess(name=process, instances=order.instances or 1)
        case _:
            raise ValueError(f"{order.verb} is a daemon's")


def for_daemon(order: OrderRequest) -> DaemonCommand:
    """The command for the service's own daemon."""
    match order.verb:
        case Verb.RESTART:
            return Restart()
        case Verb.SHED:
            return Shed()
        case Verb.RESUME:
            return Resume()
        case Verb.LOOP_MODE if order.mode is not None:
            return SetLoopMode(mode=order.mode)
        case Verb.SET_LIMITS if order.limits is not None:
            return SetLimits(limits=order.limits)
        case Verb.HEALTH_CHECK:
            return HealthCheck()
        case _:
            raise ValueError(f"{order.verb} is a warden's")
