"""The vocabulary: every message that crosses a process boundary. Pure: values only.

These are also the domain types; there is no second set. On the wire each is a
msgpack map, tagged by the key ``type``, so that outsiders can read it. Fields
are only ever added, with defaults. A receiver ignores unknown fields of a
status and refuses unknown fields of a command. Those that come a hundred thousand
times a second are not tracked by the garbage collector: nothing in them leads back.

Units stand in the names: ``_s`` seconds, ``_bytes`` bytes, ``cpu_cores`` cores
(1.0 is one core busy). An unknown quantity is None, never a guess.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}"

Name = Annotated[str, Meta(pattern=f"^{_NAME}\\Z")]
"""A service, instance, host or process: one word, as it becomes part of topics, file names and URLs."""

UncheckedName = Annotated[str, Meta(min_length=1, max_length=128)]
"""A Name once ``is_name`` says so. For statuses: the pattern would cost more than the rest of the decoding, and ATLAS
checks each name when it first hears it, so that nothing else reaches the feed."""

ProcessName = Annotated[str, Meta(min_length=1, max_length=256)]
"""A process of supervisord's, in whatever words its configuration has; supervisor refuses blanks, ':' and '/'."""

Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A count or a size: what every language and SQLite can hold."""

Seconds = Annotated[float, Meta(ge=0.0, le=1e12)]
"""A duration, or CLOCK_MONOTONIC; never NaN."""

Shift = Annotated[float, Meta(ge=-1e12, le=1e12)]
"""A difference of two readings of supervisord's clock, which is the wall's: negative if that was set back."""

UnixTime = Annotated[float, Meta(ge=0.0, le=253_402_300_799.0)]
"""Seconds since 1970, to the end of the year 9999. A clock may be wrong, but not so wrong that no date can be told."""


def is_name(text: str) -> bool:
    """Whether it is a Name."""
    return _is_name(text) is not None


_is_name = re.compile(_NAME).fullmatch

# -- words ---------------------------------------------------------------------------------------


class HealthStatus(StrEnum):
    """How well a service does its work, in its own daemon's judgement."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class OodaPhase(StrEnum):
    """Where a service's control loop stands (Boyd: observe, orient, decide, act)."""

    OBSERVE = "observe"
    ORIENT = "orient"
    DECIDE = "decide"
    ACT = "act"


class OodaMode(StrEnum):
    """off: the loop rests. shadow: it decides and records. on: it acts too."""

    OFF = "off"
    SHADOW = "shadow"
    ON = "on"


class LifecyclePhase(StrEnum):
    """What a service's process is about; the transitions stand in cdn_daemon/lifecycle.py."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class ProcessState(StrEnum):
    """supervisor's words for a process (http://supervisord.org/subprocess.html#process-states)."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"
    UNKNOWN = "UNKNOWN"


class OutcomeKind(StrEnum):
    """How a command ended. unknown: its effect could not be established before the deadline."""

    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class Verb(StrEnum):
    """What an operator may ask of a service."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SIGNAL = "signal"
    ENABLE = "enable"
    DISABLE = "disable"
    RESET_FAILED = "reset-failed"
    MAINTENANCE = "maintenance"
    SCALE = "scale"
    SHED = "shed"
    RESUME = "resume"
    LOOP_MODE = "loop-mode"
    SET_LIMITS = "set-limits"
    HEALTH_CHECK = "health-check"


# -- telemetry: published, topics in bus/topics.py ---------------------------------------------------


class Vitals(Struct, frozen=True, kw_only=True, gc=False):
    """A process as the operating system sees it, sampled once a second."""

    rss_bytes: Whole | None = None
    cpu_cores: Annotated[float, Meta(ge=0.0, le=1e6)] | None = None
    fds: Whole | None = None
    threads: Whole | None = None
    children: Whole | None = None
    loop_lag_s: Seconds | None = None
    """Age of the oldest pulse that the service's own loop has not answered, or its last answer time."""
    tick_late_s: Seconds | None = None
    """99th percentile of how late the daemon's ticks began, over the last minute."""
    tick_body_s: Seconds | None = None
    """99th percentile of how long a tick's work took, over the last minute."""


class ServiceMetrics(Struct, frozen=True, kw_only=True, gc=False):
    """What a service measures: the framework's vitals, and numbers of its own by name."""

    vitals: Vitals = field(default_factory=Vitals)
    in_flight: Whole = 0
    """Requests accepted and not yet answered."""
    requests: Whole = 0
    """Requests answered since the process began."""
    values: dict[str, float] = field(default_factory=dict)
    """The service's own metrics, named as Prometheus would (``rows_written_total``)."""


class DaemonStatus(Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="daemon_status"):
    """What a service's daemon says of it: on every change, and at least once a second."""

    service: UncheckedName
    instance: UncheckedName
    """Unique in the fleet; the same as service unless it has several instances."""
    host: UncheckedName
    incarnation: Whole
    """Counts the starts of this instance in its run directory: a larger one is a later start."""
    seq: Whole
    """1, 2, 3 … within one incarnation; a gap is a lost message."""
    pid: Whole
    time_s: UnixTime
    """Unix time at the sender."""
    monotonic_s: Seconds
    """CLOCK_MONOTONIC at the sender; only differences mean anything."""
    uptime_s: Seconds
    restarts: Whole = 0
    """Starts of this instance under the present supervisor, less the first."""
    phase: LifecyclePhase = LifecyclePhase.STARTING
    health: HealthStatus = HealthStatus.UNKNOWN
    reasons: tuple[str, ...] = ()
    """Why it is not healthy; empty when it is."""
    ooda_phase: OodaPhase = OodaPhase.OBSERVE
    ooda_mode: OodaMode = OodaMode.ON
    shedding: bool = False
    """Whether it has been told to shed load, and not yet to resume."""
    address: str | None = None
    """Base URL of the service's server, such as ``http://127.0.0.1:18100``; None before it listens."""
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    limits: Limits | None = None
    """The bands in effect, as declared, set by its environment and changed since; None: it does not tell."""


class ProcessRow(Struct, frozen=True, kw_only=True):
    """One process of supervisord's table."""

    name: ProcessName
    """supervisor's name: ``program``, or ``group:process`` where they differ."""
    state: ProcessState
    pid: Whole | None = None
    uptime_s: Shift | None = None
    """Seconds since the process was spawned; None when there is none."""
    restarts: Whole = 0
    """Starts since supervisord began, less the first."""
    wait_status: int | None = None
    """Raw status of waitpid(2) of the last process that ended; None if none has."""
    reason: str = ""
    """Why it is not running, in words; empty when it is."""
    next_try_s: Shift | None = None
    """Seconds until supervisord tries again, when it is backing off."""
    log: str | None = None
    """Path of the file that holds its output on that host."""
    enabled: bool = True
    """False: it stays down, whoever starts it, until it is enabled."""
    maintenance: bool = False
    """True: the warden does not judge it."""
    program: ProcessName | None = None
    """The program that this is a further instance of; None if it stands in supervisord's configuration itself."""
    depends_on: tuple[ProcessName, ...] = ()
    """What has to be ready before it is started."""
    says_ready: bool = False
    """RUNNING means that it has said READY=1."""


class NodeStatus(Struct, frozen=True, kw_only=True, tag_field="type", tag="node_status"):
    """What the warden inside supervisord says of its host's processes."""

    host: Name
    incarnation: Whole
    """Counts supervisord's starts in its run directory."""
    seq: Whole
    pid: Whole
    time_s: UnixTime
    monotonic_s: Seconds
    processes: tuple[ProcessRow, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    """The warden's own counters: errors survived, datagrams refused, verdicts, …"""
    last_error: str = ""


class Event(Struct, frozen=True, kw_only=True, tag_field="type", tag="event"):
    """Something happened to an instance; events have happened, commands ask."""

    id: str
    source: Name
    """Who says so: an instance, or a host's warden as ``warden@HOST``."""
    incarnation: Whole
    """The source's own."""
    seq: Whole
    """1, 2, 3 … within one source, incarnation and topic."""
    time_s: UnixTime
    host: Name
    instance: ProcessName
    subject_incarnation: Whole | None = None
    kind: str
    """One word: state, health, restart, command, unreachable, …"""
    text: str
    cause: str | None = None
    """Id of the event or command that led to this one."""
    version: Whole = 1
    """Of what the kind's facts mean. Fields are added without a new one; who knows only an older one hears nothing."""
    facts: dict[str, Any] = {}
    """By the kind, one of the vocabulary below or a service's own; empty for what is only told in words."""


Telemetry = DaemonStatus | NodeStatus | Event


# -- facts: what an event of a service's says to other services; docs/events.md ---------------------------------


class Facts(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What the facts of one kind of event have in common: the tag is the kind."""

    VERSION: ClassVar[int] = 1
    """Raised only where who knows the older one would misunderstand the newer."""


class ChangePoint(Facts, frozen=True, kw_only=True, tag="change_point"):
    """A series of numbers is from some moment on unlike what it was before."""

    series: str
    """Its name, such as ``logins_failed_total``, perhaps with labels."""
    direction: Literal["up", "down"]
    before: float
    """Its level before and after, in the series' own unit."""
    after: float
    p_value: Annotated[float, Meta(ge=0.0, le=1.0)]
    """How likely a difference of this size is if nothing has changed."""
    at_s: UnixTime
    """When it began."""
    source: str = ""
    """What is behind it as far as the series tells, such as the address that most of it came from."""


class Sighting(Facts, frozen=True, kw_only=True, tag="sighting"):
    """Something that a feed warns of was seen."""

    value: str
    """What was seen: ``203.0.113.7``, ``evil.example``, a hash."""
    value_type: str
    """In STIX' words: ipv4-addr, ipv6-addr, domain-name, url, file."""
    confidence: Annotated[int, Meta(ge=0, le=100)]
    """That it is what the feeds say."""
    feeds: tuple[str, ...] = ()
    """Which warn of it."""
    techniques: tuple[str, ...] = ()
    """Of ATT&CK: ``T1110``, ``T1110.001``."""
    count: Whole = 1
    """How often it was seen, as far as this event tells."""
    seen_by: str = ""
    """Who saw it."""
    seen_s: UnixTime | None = None
    """When, if that was not now."""


class ReactionState(StrEnum):
    """How far a reaction is."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    DENIED = "denied"
    EXECUTED = "executed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    EXPIRED = "expired"


class Reaction(Facts, frozen=True, kw_only=True, tag="reaction"):
    """A reaction to a threat has come so far; one event for each state."""

    reaction: str
    """Its id, the same in all its states."""
    state: ReactionState
    """proposed, approved, denied, executed, failed, rolled_back or expired."""
    playbook: str = ""
    action: str
    """In OpenC2's words: deny, allow, …"""
    target: str
    """What it is done to: an address, a network, …"""
    until_s: UnixTime | None = None
    """Until when it holds; None: until it is taken back."""
    by: str = ""
    """Who or what brought it so far."""


class Blocked(Facts, frozen=True, kw_only=True, tag="blocked"):
    """Who is refused has changed."""

    network: str
    """``203.0.113.7/32``."""
    action: Literal["deny", "allow", "delete"]
    """delete: the rule is gone."""
    start_s: UnixTime | None = None
    """From when on; None: from now."""
    until_s: UnixTime | None = None
    """None: until it is taken back."""
    rule: str = ""
    """Id of the command that gave the rule."""
    by: str = ""
    """Who gave that."""
    rate_per_s: float | None = None
    """Of a deny: only what goes beyond so many requests a second is refused; None: everything."""


class AlertState(StrEnum):
    """How far an alert is."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class Alert(Facts, frozen=True, kw_only=True, tag="alert"):
    """An alert rule's verdict on a series has changed."""

    name: str
    state: AlertState
    """pending, firing or resolved."""
    labels: dict[str, str] = {}
    value: float | None = None
    """Of the rule's expression."""


class Fence(Facts, frozen=True, kw_only=True, tag="fence"):
    """Something that moves has crossed the border of an area."""

    object: str
    fence: str
    crossing: Literal["enter", "exit"]
    lon: Annotated[float, Meta(ge=-180.0, le=180.0)]
    """Degrees, WGS 84, as OGC CRS84 has them."""
    lat: Annotated[float, Meta(ge=-90.0, le=90.0)]


Vocabulary = ChangePoint | Sighting | Reaction | Blocked | Alert | Fence


# -- limits: declared by a service, overridden by its environment, changed by a command -----------------


class Band(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of something a service may use."""

    soft: float
    """Above it for ``for_s``: degraded, and told to shed."""
    hard: float | None = None
    """Above it: drained and restarted. None: never."""
    for_s: float = 0.0
    """How long above ``soft``, and above ``hard`` where the quantity fluctuates (cpu_cores, loop_lag_s)."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bands for a service's process and its children; None: no limit."""

    rss_bytes: Band | None = None
    cpu_cores: Band | None = None
    fds: Band | None = None
    threads: Band | None = None
    children: Band | None = None
    loop_lag_s: Band | None = None


# -- commands: ATLAS → daemons and wardens -------------------------------------------------------------


class Restart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="restart"):
    """Drain, then end with 75, so that supervisord starts the next incarnation."""


class Shutdown(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="shutdown"):
    """Drain, then end with 0, and stay down."""


class HealthCheck(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="health_check"):
    """Run every health check now; Done carries the status that results."""


class ReportStatus(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="report_status"):
    """Publish the status now; Done carries it too."""


class SetLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="set_limits"):
    """Use these bands from now on, until the process ends; those that are None stay as they are."""

    limits: Limits


class Shed(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="shed"):
    """Serve less: the service's shed hook is called, and it counts as shedding until Resume."""


class Resume(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="resume"):
    """Serve as before Shed."""


class SetLoopMode(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="set_loop_mode"):
    """Run the OODA loop in this mode from now on, until the process ends."""

    mode: OodaMode


class StartProcess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="start_process"
):
    """To a warden: have supervisord start a process; Done when it is ready."""

    name: ProcessName


class StopProcess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="stop_process"):
    """To a warden: have supervisord stop a process; Done when it is gone."""

    name: ProcessName


class RestartProcess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="restart_process"
):
    """To a warden: stop the process if there is one, then start it; Done when it is ready."""

    name: ProcessName
    pid: int | None = None
    """The process that is to be replaced: if another runs by now, that has happened, and nothing is done."""


class SignalProcess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="signal_process"
):
    """To a warden: send a signal to a process; Done when it is sent."""

    name: ProcessName
    signal: int
    pid: int | None = None
    """Refused by any other process than this one; None: whichever there is."""


class EnableProcess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="enable_process"
):
    """To a warden: let the process be started again, and start it if it starts by itself. Survives restarts."""

    name: ProcessName


class DisableProcess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="disable_process"
):
    """To a warden: stop the process and refuse to start it until it is enabled. Survives restarts."""

    name: ProcessName


class ForgetFailures(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="forget_failures"
):
    """To a warden: start counting failures anew; one that was given up becomes STOPPED, not started."""

    name: ProcessName


class SetMaintenance(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="set_maintenance"
):
    """To a warden: do not judge the process (or do so again). It is still restarted if it ends. Survives restarts."""

    name: ProcessName
    on: bool
    for_s: float | None = None
    """None: until it is switched off."""


class ScaleProcess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="scale_process"
):
    """To a warden: run so many instances of the program: NAME, NAME-2, NAME-3 … Survives restarts."""

    name: ProcessName
    instances: int


class HoldRestarts(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="hold_restarts"
):
    """To a warden: should the process end, wait that long before starting it; an operator's start is not held."""

    name: ProcessName
    for_s: float
    """0 releases it. The warden holds for a minute at most: ATLAS may be gone by then."""
    reason: str


DaemonCommand = Restart | Shutdown | HealthCheck | ReportStatus | SetLimits | Shed | Resume | SetLoopMode
NodeCommand = (
    StartProcess
    | StopProcess
    | RestartProcess
    | SignalProcess
    | EnableProcess
    | DisableProcess
    | ForgetFailures
    | SetMaintenance
    | ScaleProcess
    | HoldRestarts
)


class Command(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="command"):
    """One order. Delivered at least once, takes effect at most once: the receiver remembers ids."""

    id: str
    target: Name
    """The instance, or for a warden its host."""
    incarnation: int | None = None
    """Refused by any other incarnation than this one; None: whichever there is."""
    timeout_s: float
    """What was left to the deadline when this was sent; clocks of two hosts are not compared."""
    asked_by: str
    body: DaemonCommand | NodeCommand


class Hello(Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """Who speaks on this connection; sent every other second at least, as ATLAS may be a new one."""

    target: Name
    """The name that commands to this agent carry: an instance, or a warden's host."""
    role: str
    """``daemon`` or ``warden``."""
    host: Name
    incarnation: int
    pid: int


class Accepted(Struct, frozen=True, kw_only=True, tag_field="type", tag="accepted"):
    """The agent has the command and has begun; an outcome will follow, if it lives to say so."""

    id: str
    incarnation: int


class Outcome(Struct, frozen=True, kw_only=True, tag_field="type", tag="outcome"):
    """How a command ended."""

    id: str
    kind: OutcomeKind
    reason: str = ""
    incarnation: int | None = None
    """Of whoever answers; after a restart, of the new process."""
    status: DaemonStatus | None = None
    """For HealthCheck and ReportStatus."""


AgentMessage = Hello | Accepted | Outcome


# -- the end of a process: written by the warden as a file (bus/postmortems.py), gathered by ATLAS -------------


class PostMortem(Struct, kw_only=True):
    """What is known of one life of a process, after its end."""

    name: str
    host: str
    start: int
    """1 is the program's first start under this supervisord."""
    pid: int
    incarnation: int | None = None
    """Which start of the instance it was; None for what has no daemon, or did not live to tell."""
    ended_at: str
    """UTC, ISO 8601."""
    lived_s: float
    ready_after_s: float | None
    """None: it never was ready."""
    wait_status: int
    """Raw status of waitpid(2)."""
    end: str
    """How it ended, in words."""
    verdict: str = ""
    """Why it was killed by the warden, with the evidence; empty if it was not."""
    spared: str = ""
    """A silence over its limit that had been excused before."""
    ordered_by: str = ""
    """Who ordered its end; empty if nobody did."""
    follows: str = ""
    """What the warden decided: the state it went to, and when it is to be started again."""
    last_status: str = ""
    """Its last STATUS=."""
    errno: int | None = None
    stacks: str = ""
    """Of all its threads, if it could write them."""
    log_tail: str = ""


# -- operators: cdnctl ↔ ATLAS ---------------------------------------------------------------------------


class ServiceView(Struct, frozen=True, kw_only=True):
    """One line of the fleet, as operators see it; the schema of ``cdnctl status --json``."""

    service: ProcessName
    instance: ProcessName
    host: str | None
    state: ProcessState
    health: HealthStatus
    phase: LifecyclePhase | None
    ooda_phase: OodaPhase | None
    pid: int | None
    incarnation: int | None
    uptime_s: float | None
    restarts: int | None
    """None if nobody who counts them was heard: supervisord itself does not."""
    cpu_cores: float | None
    rss_bytes: int | None
    seen_s: float | None
    """Seconds since the service was last heard; None if never."""
    reason: str
    address: str | None
    ooda_mode: OodaMode | None = None
    shedding: bool = False
    enabled: bool = True
    maintenance: bool = False
    loop_lag_s: float | None = None
    in_flight: int | None = None
    requests: int | None = None


class FleetRequest(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="fleet_request"
):
    """What runs, and how is it?"""

    id: str


class EventsRequest(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="type",
    tag="events_request",
):
    """What happened lately?"""

    id: str
    limit: int = 100
    kinds: tuple[str, ...] = ()
    """Only these; of what services tell each other ATLAS has the newest 2,000 at hand."""
    chain: str | None = None
    """Instead: all that led to and came of the event or command with this id, or whose id begins so."""


class OrderRequest(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="order_request"
):
    """Do this to those; one OrderOutcome follows for each name.

    An id that ATLAS knows already attaches whoever sends it to that order: nothing
    is done twice, and outcomes that are there are told again.
    """

    id: str
    verb: Verb
    names: tuple[str, ...]
    timeout_s: float
    """For each name, counted from when it is its turn."""
    asked_by: str
    batch: int | None = None
    """restart: so many at a time, the next when those are ready, none after the first failure. None: all at once."""
    signal: int | None = None
    """signal: its number."""
    instances: int | None = None
    """scale: how many are to run."""
    on: bool | None = None
    """maintenance: begin or end it."""
    for_s: float | None = None
    """maintenance: for how long; None: until it is ended."""
    mode: OodaMode | None = None
    """loop-mode: which."""
    limits: Limits | None = None
    """set-limits: these."""
    asked_s: float | None = None
    """CLOCK_MONOTONIC when it was asked, on ATLAS's host: one that comes late is refused, as nobody waits for it."""
    attach: bool = False
    """Only if ATLAS knows the id already; refused if it does not."""


class CommandsRequest(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="commands_request"
):
    """What was asked lately, and what came of it?"""

    id: str
    limit: int = 100
    name: str | None = None
    """Of this instance only."""


class WhyRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="why_request"):
    """Why did it end?"""

    id: str
    name: str
    limit: int = 1
    """How many of its ends."""


class SnapshotRequest(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="snapshot_request"
):
    """What has been said last on each topic that has a last value? For subscribers who must know that they have all."""

    id: str


OperatorRequest = FleetRequest | EventsRequest | OrderRequest | CommandsRequest | WhyRequest | SnapshotRequest


class CommandView(Struct, frozen=True, kw_only=True):
    """One command and what came of it; the schema of ``GET /api/v1/commands``."""

    id: str
    order: str
    """Id of the order that it belongs to."""
    verb: Verb
    name: ProcessName
    asked_by: str
    asked_at_s: float
    """Unix time."""
    stage: str
    """waiting (its turn has not come), asked, accepted, ended."""
    attempts: tuple[str, ...] = ()
    """Whom it was sent to, in order."""
    kind: OutcomeKind | None = None
    """None until it has ended."""
    reason: str = ""
    incarnation: int | None = None
    """That it was for; once it has ended, that there is now."""
    took_s: float | None = None


class StatusSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One status, as ATLAS's history keeps it."""

    time_s: float
    """Unix time at ATLAS."""
    health: HealthStatus
    phase: LifecyclePhase
    cpu_cores: float | None = None
    rss_bytes: int | None = None
    loop_lag_s: float | None = None
    in_flight: int = 0
    requests: int = 0
    fds: int | None = None
    threads: int | None = None
    restarts: int = 0
    incarnation: int | None = None


class IncarnationView(Struct, frozen=True, kw_only=True):
    """One life of an instance, and why it ended: all that there is to know of it in one place."""

    key: str
    """What it is asked for by: its incarnation, or for what has none the name of its post-mortem."""
    instance: ProcessName
    incarnation: int | None = None
    host: str | None = None
    pid: int | None = None
    start: int | None = None
    """1 is the program's first start under its supervisord."""
    started_s: float | None = None
    """Unix time, as is all in here that is no duration."""
    ended_s: float | None = None
    """None: it has not ended, as far as is known."""
    lived_s: float | None = None
    ready_after_s: float | None = None
    summary: str = ""
    """In one line: how it ended, and the best reason that there is."""
    end: str = ""
    """How, in words: ``exit code 3``, ``killed by SIGKILL``; empty if nobody knows."""
    wait_status: int | None = None
    verdict: str = ""
    """Why the warden killed it, with the evidence; empty if it did not."""
    spared: str = ""
    limit: str = ""
    """The limit that it was over."""
    ordered_by: str = ""
    """Who ordered its end; empty if nobody did."""
    follows: str = ""
    last_status: str = ""
    errno: int | None = None
    guilty: str = ""
    """The frame of its own code that its main thread was in."""
    stacks: str = ""
    """The main thread's first."""
    log_tail: str = ""
    statuses: tuple[StatusSample, ...] = ()
    """The last before its end, oldest first."""
    events: tuple[Event, ...] = ()
    """What happened to the instance around its end, oldest first."""
    commands: tuple[CommandView, ...] = ()
    """What was asked of it around its end, oldest first."""
    ends_last_hour: int | None = None
    """Ends of the instance in the hour before this one, this one included; None: not counted."""
    ends_last_day: int | None = None


class NodeView(Struct, frozen=True, kw_only=True):
    """One host, as its warden has told of it."""

    host: Name
    pid: int
    """supervisord's."""
    heard_s: float
    """Seconds since it was last heard."""


class FleetReply(Struct, frozen=True, kw_only=True, tag_field="type", tag="fleet_reply"):
    """Every service that ATLAS knows, in order of name."""

    id: str
    services: tuple[ServiceView, ...]
    counts: dict[str, int] = field(default_factory=dict)
    """ATLAS's counters: frames dropped by cause, agents connected, …"""
    notes: tuple[str, ...] = ()
    """What is wrong with the hosts themselves, in words: a warden that is silent, or that has survived errors."""
    nodes: tuple[NodeView, ...] = ()
    """The hosts that ATLAS hears, or has heard; of others it knows only what their daemons say."""


class EventsReply(Struct, frozen=True, kw_only=True, tag_field="type", tag="events_reply"):
    """The newest events, oldest first."""

    id: str
    events: tuple[Event, ...]


class CommandsReply(Struct, frozen=True, kw_only=True, tag_field="type", tag="commands_reply"):
    """The newest commands, oldest first."""

    id: str
    commands: tuple[CommandView, ...]


class WhyReply(Struct, frozen=True, kw_only=True, tag_field="type", tag="why_reply"):
    """The newest first; one that still runs comes before those that have ended."""

    id: str
    name: ProcessName
    incarnations: tuple[IncarnationView, ...]


class SnapshotReply(Struct, frozen=True, kw_only=True, tag_field="type", tag="snapshot_reply"):
    """Some of the last values; all of them once ``left`` is 0."""

    id: str
    left: int
    """Replies that follow this one."""
    frames: tuple[bytes, ...]
    """Each a status of a service or of a node, byte for byte as it was on the feed."""


class OrderAccepted(Struct, frozen=True, kw_only=True, tag_field="type", tag="order_accepted"):
    """ATLAS has the order, and will follow each command in it to its outcome."""

    id: str
    commands: dict[str, str]
    """Name → id of its command."""


class OrderProgress(Struct, frozen=True, kw_only=True, tag_field="type", tag="order_progress"):
    """Where one command of an order stands; for people to watch."""

    id: str
    name: ProcessName
    text: str


class OrderOutcome(Struct, frozen=True, kw_only=True, tag_field="type", tag="order_outcome"):
    """How one command of an order ended."""

    id: str
    name: ProcessName
    kind: OutcomeKind
    reason: str = ""
    incarnation: int | None = None
    took_s: float = 0.0


class Refusal(Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """The request was not understood or not allowed; nothing was done."""

    id: str
    reason: str
    again: bool = False
    """It came too late, and would be taken now: who still waits for it may ask again."""


OperatorReply = (
    FleetReply
    | EventsReply
    | CommandsReply
    | WhyReply
    | SnapshotReply
    | OrderAccepted
    | OrderProgress
    | OrderOutcome
    | Refusal
)
