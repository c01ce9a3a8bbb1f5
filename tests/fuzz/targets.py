"""All that reads what others wrote: each a function of bytes that may raise nothing, with what well-formed bytes are.

A target calls what receives, lets the one error pass that this declares, and asserts
what must hold of an answer. tests/fuzz/test_targets.py runs them under Hypothesis,
``python -m tests.fuzz`` under atheris, or by plain mutation where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec

from bus import messages as m
from bus import postmortems
from bus.codec import Decoder, FrameError, encode
from cdn_daemon.api import RefusedError, decode
from cdn_daemon.claim import Record, incarnation_of
from cdn_daemon.service import Service
from cdn_daemon.settings import SettingError, read_settings
from cdn_daemon.warden import desired
from cdn_daemon.warden import settings as warden_settings
from cdn_daemon.warden.sdnotify import MAX_STATUS_CHARS, NotifyError, parse
from cdn_daemon.web import nothing_here
from cli import conf as cli_conf
from services.atlas.journal import ENDED_KEPT, Entry, Journal, NewerVersion, Stage, line, replay
from services.gateway import openc2 as gateway_openc2
from services.gateway import snapshot
from services.gateway.openc2 import Failed
from services.geospatial.geojson import BadGeoJSON, read_feature, read_features
from services.geospatial.limits import Limits as MapLimits
from services.isolated_monitoring import claim as isolated_claim
from services.isolated_monitoring import cron
from services.isolated_monitoring import settings as isolated_settings
from services.isolated_monitoring.web import RefusedError as IsolatedRefusedError
from services.isolated_monitoring.web import Request, read_head
from services.monitoring import exposition, promql
from services.statistical import aggregates, statsd
from services.threat_intel import values
from services.threat_reaction import openc2 as reaction_openc2
from services.threat_reaction import sshd
from tests.bus.samples import SAMPLES
from tests.support import ROOT

Try = Callable[[bytes], None]


class Target(NamedTuple):
    """Who receives, and what an honest sender sends."""

    receive: Try
    honest: tuple[bytes, ...]


_scratch = TemporaryDirectory(prefix="cdn-fuzz-")
TARGETS: dict[str, Target] = {}


def target(*honest: bytes) -> Callable[[Try], Try]:
    """Put a function on the list."""

    def put(receive: Try) -> Try:
        TARGETS[receive.__name__] = Target(receive, honest)
        return receive

    return put


def _file(name: str, content: bytes) -> Path:
    """A file with that content, of this process alone; the name says what it is taken for."""
    path = Path(_scratch.name) / str(os.getpid()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _environ(content: bytes) -> dict[str, str]:
    """KEY=VALUE lines, as execve(2) would have them: no NUL."""
    lines = (each.partition("=") for each in content.replace(b"\0", b"?").decode(errors="surrogateescape").split("\n"))
    return {key: value for key, _, value in lines if key}


def _lines(*texts: str) -> bytes:
    return "\n".join(texts).encode()


# -- between processes ------------------------------------------------------------------------------------

_DECODERS = [
    Decoder[Any](type_) for type_ in (m.Telemetry, m.Command, m.AgentMessage, m.OperatorRequest, m.OperatorReply)
]


@target(*(encode(message) for message in SAMPLES))
def frames(content: bytes) -> None:
    """The codec: FrameError, or a message that is the same after one more trip."""
    for decoder in _DECODERS:
        try:
            message = decoder.decode(content)
        except FrameError as error:
            if error.cause not in ("malformed", "too_large"):
                raise
            continue
        assert decoder.decode(encode(message)) == message


@target(b"WATCHDOG=1", b"READY=1\nSTATUS=up\nMAINPID=42", b"ERRNO=2\nEXTEND_TIMEOUT_USEC=1000000\nWATCHDOG_USEC=500000")
def notices(content: bytes) -> None:
    """The warden's sd_notify."""
    with suppress(NotifyError):
        notice = parse(content)
        assert notice.status is None or (notice.status.isprintable() and len(notice.status) <= MAX_STATUS_CHARS)
        for time_s in (notice.watchdog_s, notice.extend_s):
            assert time_s is None or 0 <= time_s < 1e13


# -- files that are read back -----------------------------------------------------------------------------


def entries(count: int) -> Iterable[Entry]:
    """Commands as ATLAS writes them down: asked, then ended, each in its turn."""
    for number in range(count):
        request = m.OrderRequest(id=f"o{number}", verb=m.Verb.RESTART, names=("web",), timeout_s=5.0, asked_by="root")
        asked = Entry(
            id=f"c{number}", request=request, turn=0, asked_at_s=1e9, boot_id="b", began_s=1.0, stage=Stage.ASKED
        )
        yield asked
        yield msgspec.structs.replace(asked, stage=Stage.ENDED, kind=m.OutcomeKind.DONE, took_s=0.5)


@target(b"".join(map(line, entries(4))), b'{"v":2}\n')
def journal(content: bytes) -> None:
    """ATLAS's journal: read as far as it is whole, every line that is not counted, and written to again."""
    path = _file("journal.jsonl", content)
    whole = content.rpartition(b"\n")[0].split(b"\n")
    kept = Journal(path)
    book = kept.open(0.0)
    try:
        expected, corrupt = replay(whole)
    except NewerVersion:
        assert [each for each in path.parent.iterdir() if each.read_bytes() == content], "what is newer is kept"
    else:
        assert (book, kept.corrupt) == (expected, corrupt)
        lines = [each for each in whole if each.strip()]
        assert corrupt <= len(lines)
        if len(lines) < ENDED_KEPT:
            assert len(list(book.entries())) <= len(lines) - corrupt
    assert not kept.problem
    (said, _) = entries(1)
    kept.append(said)
    kept.close()
    again = Journal(path)
    assert again.open(0.0).get(said.id) == said
    assert again.corrupt == 0
    again.close()
    for each in path.parent.iterdir():
        each.unlink()


@target(
    desired.encode(
        desired.Desired()
        .disable("web", desired.Disabled(by="root", at_s=1e9))
        .maintain("db", desired.Maintenance(by="root", until_s=2e9))
        .scale("web", 3)
    )
)
def what_is_desired(content: bytes) -> None:
    """The warden's desired.json."""
    with suppress(desired.UnusableError):
        found = desired.decode(content)
        assert desired.decode(desired.encode(found)) == found
        for name, each in found.disabled.items():
            assert desired.why_disabled(name, each)
        for maintenance in found.maintenance.values():
            assert desired.why_maintained(maintenance)


_POST_MORTEM = m.PostMortem(
    name="web", host="here", start=1, pid=42, ended_at="2026-01-01T00:00:00Z", lived_s=1.0, ready_after_s=None,
    wait_status=9, end="killed by SIGKILL",
)  # fmt: skip


@target(msgspec.json.encode(_POST_MORTEM))
def post_mortems(content: bytes) -> None:
    """A file among the post-mortems is one, or none; whatever its name says is its time."""
    for name in ("20260101T000000.000000001-42.json", "99999999T999999.999999999-42.json"):
        postmortems.load(_file(name, content))


@target(msgspec.json.encode(Record(incarnation=3, pid=42, parent=1, supervisor="7@8", first=2)))
def locks(content: bytes) -> None:
    """A lock file's record: a damaged one says nothing, and holds up nobody's start."""
    path = _file("web.lock", content[:4096])
    assert isinstance(incarnation_of(path, {42}), int | None)
    fd = os.open(path, os.O_RDONLY)
    try:
        record = isolated_claim.read_record(fd)
        assert all(isinstance(record.get(key, 0), int) for key in ("incarnation", "pid", "parent", "first"))
    finally:
        os.close(fd)


@target(b'{"version":1,"known":{}}')
def routes(content: bytes) -> None:
    """The gateway's last routes."""
    with suppress(snapshot.SnapshotError):
        snapshot.load(_file("routes.json", content))


def _slots() -> Iterable[bytes]:
    counter, gauge, distribution = aggregates.Counter(), aggregates.Gauge(), aggregates.Distribution(100)
    counter.add(b"1", 1.0)
    gauge.add(b"+2", 1.0, 0.0)
    for number in range(50):
        distribution.add(b"%d" % number**2, 1.0)
    yield from (aggregates.packed(each) for each in (counter, gauge, distribution))


# -- configuration ----------------------------------------------------------------------------------------

_CONF = (ROOT / "supervisord.conf").read_bytes()


@target(
    _CONF[:3000],
    _lines("[include]", "files = *.none", "[program:web]", "command=x %d", "type=notify ; so", "numprocs=2"),
    _lines("[program:many]", "process_name=%(program_name)s_%(process_num)02d", "numprocs=2", "depends_on=%(ENV_B)s"),
)
def supervisord_conf(content: bytes) -> None:
    """The warden's reading of it, and cdnctl's: SettingsError, ConfError, or what it says."""
    path = _file("supervisord.conf", content)
    with suppress(warden_settings.SettingsError):
        for name, told in warden_settings.read(path, {"ENV_B": "web"}).items():
            warden_settings.settings_of(name, "sleep 1", told, {})
    text = _text(content)
    with suppress(cli_conf.ConfError):
        cli_conf.read(text, path)
    derived = cli_conf.derive(text, path, Path("/run/other"))
    assert cli_conf.origin_of(derived) == path


_SERVICE = Service("web", app=nothing_here, port=80)


@target(
    _lines("CDN_INSTANCE=web-2", "CDN_PORT=0", "CDN_HOST=::1", "CDN_HOSTS=a.example *", "CDN_ALLOW_PUBLIC=no"),
    _lines("CDN_DRAIN_S=1e1", "CDN_OODA=shadow", "CDN_ORPHANS=adopt", "CDN_LIMIT_RSS_BYTES=1e8:2e8:10"),
    _lines("CDN_RLIMIT_DATA=1000000000", "CDN_RLIMIT_NOFILE=512", "CDN_NICE=5", "CDN_IONICE=idle", "CDN_CPUS=0-1"),
)
def environment(content: bytes) -> None:
    """CDN_* of a service: SettingError that names the variable, or settings within their limits."""
    environ = _environ(content)
    try:
        settings = read_settings(_SERVICE, environ)
    except SettingError as error:
        if "CDN_" not in str(error):
            raise
    else:
        assert 0 <= settings.port <= 65535
        assert "/" not in settings.instance
    with suppress(isolated_settings.SettingError):
        isolated_settings.read_settings({"CDN_RUN_DIR": "/nowhere/at/all"} | environ, port=0)


@target(
    b'settle_s = 1\nrealert_s = 0\n[[target]]\nname = "shop"\nhttp = "https://shop.example/health"\nstatus = 200\n'
    b'[[target]]\nname = "db"\ntcp = "127.0.0.1:5432"\ndepends_on = ["shop"]\nevery_s = 10\n',
    b'[[alert]]\ncommand = ["a", "b"]\ntimeout_s = 10\n[[alert]]\nwebhook = "https://x.example"\n'
    b'[[alert]]\nfile = "f"\n',
)
def isolated_toml(content: bytes) -> None:
    """The isolated monitor's file."""
    with suppress(isolated_settings.SettingError):
        path = _file("isolated.toml", content)
        isolated_settings.read_settings({"CDN_RUN_DIR": "/nowhere", "CDN_ISOLATED_CONFIG": str(path)}, port=0)


# -- requests and lines -----------------------------------------------------------------------------------


@target(b'{"type":"restart"}', b'{"rss_bytes":{"soft":1e8,"hard":2e8,"for_s":10}}')
def json_bodies(content: bytes) -> None:
    """What services read of a body: RefusedError 400."""
    for type_ in (m.Limits, dict[str, Any], list[int]):
        try:
            decode(content, type_)
        except RefusedError as error:
            if error.reason.status != 400:
                raise
            msgspec.json.encode(error.reason)


@target(
    b"GET /a%20b?x=1&x=2 HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 5\r\n\r\n",
    b"POST /ping/x HTTP/1.0\r\n\r\n",
)
def isolated_requests(content: bytes) -> None:
    """Its HTTP heads, and bodies of JSON."""
    with suppress(IsolatedRefusedError):
        assert read_head(content + b"\r\n\r\n").path.isprintable() is not None
    with suppress(IsolatedRefusedError):
        found = Request("POST", "/", {}, {}, content).json()
        assert msgspec.json.encode(found)


@target(b"*/5 0-6,12 1 jan-mar mon#2", b"0 0 L * 7")
def cron_lines(content: bytes) -> None:
    """Schedules of checks."""
    with suppress(cron.CronError):
        cron.parse(_text(content))


@target(b"api.requests:1|c|@0.1|#region:eu,ok", b"load:+1.5|g", b"t:1:2:3|ms", b"users:alice|s", b"_e{1,1}:a|b")
def statsd_lines(content: bytes) -> None:
    """StatsD's packets: GarbageError with its cause."""
    for each in content.split(b"\n"):
        try:
            _, raw, value, stands_for = statsd.parse(each)
            assert stands_for >= 1
            assert 1 <= len(statsd.name_of(raw)) <= statsd.NAME_CHARS
            statsd.number(value)
        except statsd.GarbageError as error:
            if error.cause not in statsd.CAUSES:
                raise


@target(b'# TYPE up counter\n# HELP up Is.\nup{a="b\\"",c="d"} 1 1700000000000\nload 1e3\n', b"up NaN\n")
def scraped(content: bytes) -> None:
    """What a target answers to a scrape."""
    with suppress(exposition.FormatError):
        samples, _ = exposition.read(_text(content))
        for sample in samples:
            exposition.parse_series(sample.series)


@target(b'sum by (a) (rate(up{a=~"b.*"}[5m] offset 1m)) > 2', b"histogram_quantile(0.9, x) or -y ^ 2", b'{a!="b"}')
def queries(content: bytes) -> None:
    """PromQL."""
    with suppress(promql.QueryError):
        promql.parse(_text(content))
    with suppress(promql.QueryError):
        promql.parse_selector(_text(content))


@target(
    b'{"action":"deny","target":{"ipv4_net":"192.0.2.0/24"},"args":{"duration":1000},"actuator":{"slpf":{}}}',
    b'{"action":"query","target":{"features":["versions"]},"command_id":"a"}',
)
def openc2_commands(content: bytes) -> None:
    """The gateway's orders, from whoever has its token."""
    with suppress(Failed):
        gateway_openc2.read(content, None)


@target(b'{"status":200,"results":{"x-cdn":{"rules":[{"network":"192.0.2.0/24","action":"deny","command_id":"r1"}]}}}')
def openc2_answers(content: bytes) -> None:
    """What a gateway, or whoever has its port, answers to cdn-threat-reaction."""
    with suppress(reaction_openc2.BadAnswerError):
        reaction_openc2.read_answer(content)
    with suppress(reaction_openc2.BadAnswerError):
        reaction_openc2.read_rules(content, ahead_s=0.0)


@target(
    b"Nov 23 12:00:00 host sshd[42]: Failed password for invalid user admin from 192.0.2.7 port 4711 ssh2",
    b"2026-11-23T12:00:00.123+00:00 host sshd[42]: Accepted publickey for root from 2001:db8::1 port 22 ssh2: x",
)
def sshd_lines(content: bytes) -> None:
    """Log-ins, whose user names strangers choose."""
    sshd.read_lines(_text(content).splitlines(), 2026)


@target(
    b"192.0.2.1",
    b"192[.]0.2.0/24",
    b"hxxps://b\xc3\xbccher.example:443/a?b#c",
    b"d41d8cd98f00b204e9800998ecf8427e",
    b"[::1]",
)
def indicators(content: bytes) -> None:
    """Values of threat intelligence: NoValue, or one that reads as itself."""
    with suppress(values.NoValue):
        value = values.read(_text(content))
        assert values.read(value.key) == value


@target(
    b'{"type":"FeatureCollection","features":[{"type":"Feature","id":1,"properties":{"a":1,"datetime":"2026-01-01"},'
    b'"geometry":{"type":"Polygon","coordinates":[[[0,0],[1,0],[1,1],[0,0]]]}}]}',
    b'{"type":"Feature","properties":null,"geometry":{"type":"Point","coordinates":[1.5,2,3]}}\n',
)
def features(content: bytes) -> None:
    """GeoJSON."""
    with suppress(BadGeoJSON):
        for raw in read_features(content):
            with suppress(BadGeoJSON):
                read_feature(raw, MapLimits())


@target(*_slots())
def slots(content: bytes) -> None:
    """cdn-statistical's slots of its database, or of another instance's answer."""
    with suppress(ValueError):
        aggregates.packed(aggregates.unpacked(content))
