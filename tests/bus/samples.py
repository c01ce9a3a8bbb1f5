"""One message of every type."""

from __future__ import annotations

from bus import messages as m

STATUS = m.DaemonStatus(
    service="cdn-data-fabric",
    instance="cdn-data-fabric",
    host="host-1",
    incarnation=42,
    seq=7,
    pid=1234,
    time_s=1795441360.5,
    monotonic_s=1986.25,
    uptime_s=2.5,
    restarts=3,
    phase=m.LifecyclePhase.SERVING,
    health=m.HealthStatus.DEGRADED,
    reasons=("store_answers (1 of 3): no answer within 1 s",),
    ooda_phase=m.OodaPhase.DECIDE,
    ooda_mode=m.OodaMode.SHADOW,
    address="http://127.0.0.1:18100",
    metrics=m.ServiceMetrics(
        vitals=m.Vitals(rss_bytes=40_000_000, cpu_cores=0.5, fds=12, threads=6, children=0, loop_lag_s=0.001),
        in_flight=2,
        requests=100,
        values={"rows_written_total": 5.0},
    ),
)
NODE = m.NodeStatus(
    host="host-1",
    incarnation=2,
    seq=9,
    pid=99,
    time_s=1795441360.5,
    monotonic_s=1986.25,
    processes=(
        m.ProcessRow(name="atlas", state=m.ProcessState.RUNNING, pid=100, uptime_s=4.5),
        m.ProcessRow(name="web:web_01", state=m.ProcessState.FATAL, reason="exit 3", wait_status=768),
    ),
    counts={"datagrams_refused": 1},
)
EVENT = m.Event(
    id="e1",
    source="atlas",
    incarnation=5,
    seq=1,
    time_s=1795441360.5,
    host="host-1",
    instance="cdn-data-fabric",
    subject_incarnation=42,
    kind="restart",
    text="started anew",
)
VIEW = m.ServiceView(
    service="atlas",
    instance="atlas",
    host="host-1",
    state=m.ProcessState.RUNNING,
    health=m.HealthStatus.HEALTHY,
    phase=m.LifecyclePhase.SERVING,
    ooda_phase=m.OodaPhase.OBSERVE,
    pid=100,
    incarnation=5,
    uptime_s=4.5,
    restarts=0,
    cpu_cores=0.01,
    rss_bytes=41_000_000,
    seen_s=0.25,
    reason="",
    address=None,
)


def command(body: m.DaemonCommand | m.NodeCommand) -> m.Command:
    """A command with this body."""
    return m.Command(id="c1", target="cdn-data-fabric", incarnation=42, timeout_s=5.0, asked_by="root", body=body)


SAMPLES = (
    STATUS,
    NODE,
    EVENT,
    command(m.Restart()),
    command(m.Shutdown()),
    command(m.HealthCheck()),
    command(m.ReportStatus()),
    command(m.SetLimits(limits=m.Limits(rss_bytes=m.Band(soft=1e8, hard=2e8, for_s=10.0)))),
    command(m.StartProcess(name="web")),
    command(m.StopProcess(name="web")),
    command(m.RestartProcess(name="web")),
    command(m.SignalProcess(name="web", signal=15)),
    command(m.EnableProcess(name="web")),
    command(m.DisableProcess(name="web")),
    command(m.ForgetFailures(name="web")),
    command(m.SetMaintenance(name="web", on=True, for_s=600.0)),
    command(m.ScaleProcess(name="web", instances=3)),
    command(m.HoldRestarts(name="web", for_s=10.0, reason="its database is down")),
    command(m.Shed()),
    command(m.Resume()),
    command(m.SetLoopMode(mode=m.OodaMode.SHADOW)),
    m.Hello(target="cdn-data-fabric", role="daemon", host="host-1", incarnation=42, pid=1234),
    m.Accepted(id="c1", incarnation=42),
    m.Outcome(id="c1", kind=m.OutcomeKind.DONE, incarnation=42, status=STATUS),
    m.FleetRequest(id="r1"),
    m.EventsRequest(id="r1", limit=5),
    m.OrderRequest(id="r1", verb=m.Verb.RESTART, names=("a", "b"), timeout_s=30.0, asked_by="root"),
    m.CommandsRequest(id="r1", limit=5, name="a"),
    m.CommandsReply(
        id="r1",
        commands=(
            m.CommandView(
                id="c1",
                order="r0",
                verb=m.Verb.RESTART,
                name="a",
                asked_by="root",
                asked_at_s=1795441360.5,
                stage="ended",
                attempts=("its daemon",),
                kind=m.OutcomeKind.DONE,
                incarnation=43,
                took_s=0.5,
            ),
        ),
    ),
    m.WhyRequest(id="r1", name="a", limit=2),
    m.WhyReply(
        id="r1",
        name="a",
        incarnations=(
            m.IncarnationView(
                key="42",
                instance="a",
                incarnation=42,
                ended_s=1795441360.5,
                end="killed by SIGKILL",
                wait_status=9,
                guilty='File "shop.py", line 3 in total',
                statuses=(
                    m.StatusSample(
                        time_s=1795441359.5,
                        health=m.HealthStatus.DEGRADED,
                        phase=m.LifecyclePhase.SERVING,
                        rss_bytes=40_000_000,
                    ),
                ),
                events=(EVENT,),
                ends_last_hour=1,
            ),
        ),
    ),
    m.FleetReply(id="r1", services=(VIEW,), counts={"malformed": 1}),
    m.EventsReply(id="r1", events=(EVENT,)),
    m.SnapshotRequest(id="r1"),
    m.SnapshotReply(id="r1", left=0, frames=(b"\x81",)),
    m.OrderAccepted(id="r1", commands={"a": "c1"}),
    m.OrderProgress(id="r1", name="a", text="draining"),
    m.OrderOutcome(id="r1", name="a", kind=m.OutcomeKind.FAILED, reason="fatal", incarnation=43, took_s=0.5),
    m.Refusal(id="r1", reason="cannot understand"),
)
