"""Each supervisor in each configuration that is measured: the files it wants, and the command that starts it.

A configuration for one service has all that the peer offers against the three faults; for fifty, what the peer offers
for all of them at once, but not what would take a process for each.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.places import Place, from_debian, from_npm, from_pypi, installed, own
from benchmarks.tiny import Tiny
from tests.support import BIN, environment, free_port

LIMIT_MIB = 128
SHED_MIB = 112
"""Our bands have a soft side too."""
TINY_BARE, WEB_BARE = "a tiny service, bare", "an ASGI service, bare (uvicorn)"


@dataclass(frozen=True)
class Launch:
    """What starts a supervisor, and what asks it how its services are."""

    command: list[str]
    env: Mapping[str, str]
    status: list[str]


@dataclass(frozen=True)
class Peer:
    """A supervisor in one configuration."""

    key: str
    name: str
    place: Callable[[Path], Place]
    write: Callable[[Place, Path, Sequence[Tiny]], Launch]
    """Makes its files in a directory."""
    service: str = TINY_BARE
    """What it manages: the row whose cells are the limits of this one."""
    period_s: Mapping[str, float] = field(default_factory=dict)
    """Fault → how often it looks: faults are spread over that, lest all come at the same moment of it."""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Fault → why there is nothing to measure."""
    without: frozenset[str] = frozenset()
    """Faults against which it has no means: tried once."""
    slow: frozenset[str] = frozenset()
    """Faults whose end is too far off in this configuration: tried once."""
    fresh: bool = False
    """A fault is the first of its incarnation of the supervisor: the next would wait, by its policy."""
    notes: Mapping[str, str] = field(default_factory=dict)


# -- supervisor, and this project inside it ------------------------------------------------------------------


def _conf(directory: Path, sections: Mapping[str, Mapping[str, str]]) -> Path:
    path = directory / "supervisord.conf"
    head = {
        "supervisord": {
            "logfile": f"{directory}/supervisord.log",
            "pidfile": f"{directory}/supervisord.pid",
            "childlogdir": str(directory),
        },
        "unix_http_server": {"file": f"{directory}/supervisor.sock"},
        "supervisorctl": {"serverurl": f"unix://{directory}/supervisor.sock"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
    }
    lines = []
    for name, options in {**head, **sections}.items():
        lines += [f"[{name}]", *(f"{key}={value}" for key, value in options.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _supervisor(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    return _supervisord(place, directory, services, {}, {})


def _supervisord(
    place: Place,
    directory: Path,
    services: Sequence[Tiny],
    options: Mapping[str, str],
    more: Mapping[str, Mapping[str, str]],
) -> Launch:
    programs = {f"program:{each.name}": {"command": shlex.join(each.command), **options} for each in services}
    conf = str(_conf(directory, {**programs, **more}))
    return Launch(
        [place.program("supervisord"), "-n", "-c", conf],
        place.environment(),
        [place.program("supervisorctl"), "-c", conf, "status"],
    )


def _superlance(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    listeners = {
        "eventlistener:memmon": {"command": f"{place.program('memmon')} -a {LIMIT_MIB}MB", "events": "TICK_5"},
    }
    if len(services) == 1:
        url = f"http://127.0.0.1:{services[0].port}/"
        asks = f"{place.program('httpok')} -p {services[0].name} -t 1 {url}"
        listeners["eventlistener:httpok"] = {"command": asks, "events": "TICK_5"}
    # It stops before it starts: what a signal has stopped would take its TERM only after ten seconds.
    return _supervisord(place, directory, services, {"stopsignal": "KILL"}, listeners)


def _ours(place: Place, directory: Path, programs: Mapping[str, Mapping[str, str]], *, atlas: bool) -> Launch:
    told = {"autorestart": "unexpected", "exitcodes": "0,78", "startsecs": "0", "stopwaitsecs": "15"}
    told |= {"killasgroup": "true", "redirect_stderr": "true"}
    sections: dict[str, Mapping[str, str]] = {
        "rpcinterface:cdn": {"supervisor.rpcinterface_factory": "cdn_daemon.warden:make_rpcinterface"}
    }
    if atlas:
        command = f"{sys.executable} -m services.atlas"
        sections["program:atlas"] = {**told, "command": command, "priority": "10", "environment": 'CDN_PORT="0"'}
    sections |= {f"program:{name}": {**told, **options} for name, options in programs.items()}
    conf = str(_conf(directory, sections))
    env = environment(directory)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled, so what runs from here must be
    status = [str(BIN / "cdnctl"), "status"] if atlas else [place.program("supervisorctl"), "-c", conf, "status"]
    return Launch([place.program("supervisord"), "-n", "-c", conf], env, status)


def _warden(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    programs = {each.name: {"command": shlex.join(each.command), "type": "notify"} for each in services}
    return _ours(place, directory, programs, atlas=False)


def _cdn_run(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    limit = f"--limit rss_bytes={SHED_MIB}m:{LIMIT_MIB}m"
    programs = {}
    for each in services:
        told = f"--name {each.name} --http http://127.0.0.1:{each.port}/ {limit}"
        programs[each.name] = {"command": f"{BIN / 'cdn-run'} {told} -- {shlex.join(each.command)}"}
    return _ours(place, directory, programs, atlas=True)


def _daemon(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    limit = f'CDN_LIMIT_RSS_BYTES="{SHED_MIB}m:{LIMIT_MIB}m"'
    programs = {
        each.name: {"command": shlex.join(each.command), "type": "notify", "environment": limit} for each in services
    }
    return _ours(place, directory, programs, atlas=True)


# -- circus -------------------------------------------------------------------------------------------------


def _circus(place: Place, directory: Path, services: Sequence[Tiny], *, fast: bool) -> Launch:
    beats = free_port()
    endpoint = f"ipc://{directory}/e"
    circus = f"endpoint={endpoint}\npubsub_endpoint=ipc://{directory}/p\n"
    lines = [
        f"[circus]\n{circus}" + (f"stats_endpoint=ipc://{directory}/s\ncheck_delay=0.1\nstatsd=True\n" if fast else "")
    ]
    lines += [f"[watcher:{each.name}]\ncmd={shlex.join(each.command)}\n" for each in services]
    # A silence of 0.5 s, as our warden allows; killed without the grace that nobody who is stopped can use.
    hang = "loop_rate=0.1\nmax_count=5\nwatchers_stop_signal=9\nwatchers_graceful_timeout=0\n" if fast else ""
    watchdog = f"use=circus.plugins.watchdog.WatchDog\nwatchers_regex=s[0-9]+\nport={beats}\n{hang}"
    memory = "loop_rate=1\nmax_count=1\n" if fast else ""
    watcher = f"use=circus.plugins.resource_watcher.ResourceWatcher\nmax_mem={LIMIT_MIB}M\n{memory}"
    if fast or len(services) == 1:
        lines += [f"[plugin:watchdog]\n{watchdog}"]
        lines += [f"[env:{each.name}]\nTINY_BEATS={beats}\nTINY_BEATS_S=0.25\n" for each in services]
    if len(services) == 1:
        lines += [f"[plugin:memory]\nwatcher={services[0].name}\n{watcher}"]
    conf = directory / "circus.ini"
    conf.write_text("\n".join(lines))
    status = [place.program("circusctl"), "--endpoint", endpoint, "status"]
    return Launch([place.program("circusd"), str(conf)], place.environment(), status)


def _circus_default(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    return _circus(place, directory, services, fast=False)


def _circus_fast(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    return _circus(place, directory, services, fast=True)


# -- runit, s6, monit ---------------------------------------------------------------------------------------


def _run_scripts(directory: Path, services: Sequence[Tiny], limited_by: str) -> Path:
    scan = directory / "services"
    for each in services:
        (scan / each.name).mkdir(parents=True)
        script = scan / each.name / "run"
        script.write_text(f"#!/bin/sh\nexec {limited_by} {shlex.join(each.command)} >/dev/null 2>&1\n")
        script.chmod(0o755)
    return scan


def _runit(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    scan = _run_scripts(directory, services, f"{place.program('chpst')} -d {LIMIT_MIB << 20}")
    status = [place.program("sv"), "status", *(str(scan / each.name) for each in services)]
    return Launch([place.program("runsvdir"), "-P", str(scan)], place.environment(), status)


def _s6(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    scan = _run_scripts(directory, services, f"{place.program('s6-softlimit')} -d {LIMIT_MIB << 20}")
    each = f'for each in {scan}/*; do echo "${{each##*/}}: $({place.program("s6-svstat")} "$each")"; done'
    return Launch([place.program("s6-svscan"), str(scan)], place.environment(), ["/bin/sh", "-c", each])


def _monit(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    start, stop = directory / "start", directory / "stop"
    start.write_text(
        f'setsid {shlex.join(services[0].command[:-1])} "$1" >/dev/null 2>&1 & echo $! >{directory}/$1.pid\n'
    )
    stop.write_text(f"kill -9 $(cat {directory}/$1.pid)\n")
    lines = ["set daemon 1", f"set httpd unixsocket {directory}/socket allow bench:bench"]
    lines += [f"set {name}file {directory}/monit.{name}" for name in ("id", "state", "pid", "log")]
    for each in services:
        lines += [
            f"check process {each.name} with pidfile {directory}/{each.port}.pid",
            f'  start program = "/bin/sh {start} {each.port}" with timeout 1 seconds',
            f'  stop program = "/bin/sh {stop} {each.port}"',
            f"  if failed host 127.0.0.1 port {each.port} protocol http with timeout 1 second then restart",
            f"  if totalmem > {LIMIT_MIB} MB then restart",
        ]
    conf = directory / "monitrc"
    conf.write_text("\n".join(lines) + "\n")
    conf.chmod(0o600)
    monit = [place.program("monit"), "-c", str(conf)]
    return Launch([*monit, "-I"], place.environment(), [*monit, "summary"])


# -- pm2 ----------------------------------------------------------------------------------------------------


def _pm2(place: Place, directory: Path, services: Sequence[Tiny], *, fast: bool) -> Launch:
    apps = [
        {
            "name": each.name,
            "script": each.command[0],
            "args": each.command[1:],
            "interpreter": "none",
            "max_memory_restart": f"{LIMIT_MIB}M",
            "out_file": "/dev/null",
            "error_file": "/dev/null",
            "vizion": False,
        }
        for each in services
    ]
    (directory / "apps.json").write_text(json.dumps({"apps": apps}))
    env = place.environment() | {"PM2_HOME": str(directory / "pm2"), "PM2_DISABLE_VERSION_CHECK": "true"}
    env |= {"PM2_WORKER_INTERVAL": "1000"} if fast else {}
    pm2 = place.program("pm2")
    return Launch([pm2, "start", str(directory / "apps.json")], env, [pm2, "status"])


def _pm2_default(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    return _pm2(place, directory, services, fast=False)


def _pm2_fast(place: Place, directory: Path, services: Sequence[Tiny]) -> Launch:
    return _pm2(place, directory, services, fast=True)


FIRST = "each the first crash of its service; a second within a minute would wait 0.5 s, by policy"
RLIMIT = "by setrlimit (chpst -d, s6-softlimit -d): what goes beyond is refused, and the service dies of that"
PER_SERVICE = "the watchdog over all; a ResourceWatcher would be one process more for each service, and is not counted"
SELF = frozenset({"hang"})

PEERS = (
    Peer(
        "cdn",
        "cdn: supervisord with the warden",
        own,
        _warden,
        fresh=True,
        cannot={"memory": "limits are kept by cdn-run, or by the daemon in a service"},
        notes={"crash": FIRST, "status": "by supervisorctl, as there is no ATLAS to ask"},
    ),
    Peer(
        "cdn",
        "cdn: warden, ATLAS, each under cdn-run",
        own,
        _cdn_run,
        fresh=True,
        notes={"crash": FIRST},
    ),
    Peer(
        "cdn",
        "cdn: warden, ATLAS, the daemon in each",
        own,
        _daemon,
        service=WEB_BARE,
        fresh=True,
        notes={"crash": FIRST},
    ),
    Peer(
        "supervisor",
        "supervisor",
        own,
        _supervisor,
        period_s={"crash": 1.0},
        without=SELF,
        cannot={"memory": "has no limits"},
    ),
    Peer(
        "superlance",
        "supervisor + superlance, every 5 s",
        from_pypi("superlance", "supervisor"),
        _superlance,
        period_s={"crash": 1.0, "hang": 5.0, "memory": 5.0},
        notes={"cpu": "memmon alone; httpok would be one process more for each service, and is not counted"},
    ),
    Peer(
        "circus",
        "circus, default",
        from_pypi("circus"),
        _circus_default,
        period_s={"crash": 5.0},
        slow=frozenset({"hang", "memory"}),
        notes={"hang": "by its watchdog, which looks once a minute", "memory": "by its ResourceWatcher, likewise"},
    ),
    Peer(
        "circus",
        "circus, 0.1 s checks",
        from_pypi("circus"),
        _circus_fast,
        period_s={"crash": 0.1, "hang": 0.5, "memory": 1.0},
        notes={
            "hang": "by its watchdog: the service beats by UDP, and 0.5 s of silence are allowed, as by our warden",
            "memory": "by its ResourceWatcher, once a second",
            "cpu": PER_SERVICE,
        },
    ),
    Peer("runit", "runit", from_debian("runit", "runsvdir"), _runit, without=SELF, notes={"memory": RLIMIT}),
    Peer("s6", "s6", installed("s6", "s6-svscan"), _s6, without=SELF, notes={"memory": RLIMIT}),
    Peer(
        "monit",
        "monit, every 1 s",
        from_debian("monit", "monit"),
        _monit,
        period_s={"crash": 1.0, "hang": 1.0, "memory": 1.0},
    ),
    Peer(
        "pm2",
        "pm2, default",
        from_npm("pm2"),
        _pm2_default,
        period_s={"memory": 30.0},
        without=SELF,
        notes={"memory": "looked at every 30 s"},
    ),
    Peer("pm2", "pm2, 1 s checks", from_npm("pm2"), _pm2_fast, period_s={"memory": 1.0}, without=SELF),
)
