"""cdnctl init."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from bus.endpoints import LONGEST_SOCKET_NAME, MAX_SOCKET_PATH_BYTES
from cli.context import write
from cli.exits import Exit, Problem

CONF = """\
; A fleet: which programs run, in which order, and how they end. Written by cdnctl init, and yours to change.
;
;   cdnctl up        start it in the background and wait until it is ready
;   cdnctl status    what runs, and how it is
;   cdnctl doctor    whether all is set up as it should be
;   cdnctl down      end it
;
; All that is made at run time (sockets, logs, locks, state) is in run/ beside this file, and private to you.
; supervisord reads this file when it starts; after a change: supervisorctl -c supervisord.conf update

[supervisord]
logfile=%(here)s/run/supervisord.log
logfile_maxbytes=10MB
logfile_backups=3
pidfile=%(here)s/run/supervisord.pid
childlogdir=%(here)s/run
; files are for you alone
umask=077
; where every program finds the others; PYTHONUNBUFFERED so that a print is in the log at once
environment=CDN_RUN_DIR="%(here)s/run",PYTHONUNBUFFERED="1"

; A Unix socket, and no TCP port: whoever can open it is you already.
[unix_http_server]
file=%(here)s/run/supervisor.sock
chmod=0700

[supervisorctl]
serverurl=unix://%(here)s/run/supervisor.sock

; supervisorctl why, ready, enable, disable, maintenance: cdnctl's verbs.
[ctlplugin:cdn]
supervisor.ctl_factory=cli.ctlplugin:make_ctlplugin

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

; The warden: restarts at once and with backoff, RUNNING that means ready, hung processes noticed.
[rpcinterface:cdn]
supervisor.rpcinterface_factory=cdn_daemon.warden:make_rpcinterface

; ATLAS, which sees the whole fleet and carries orders to it; its page is http://127.0.0.1:18500. Losing it hurts
; no service.
[program:atlas]
command=python -m services.atlas
; the exit code is the contract: 0 it was told to end, 78 its configuration is wrong; all else is started again
autorestart=unexpected
exitcodes=0,78
; readiness is what the service says, not how long it has lived
startsecs=0
; after SIGTERM it drains for up to 10 s, and has 5 s to spare
stopwaitsecs=15
; what does not end in time goes with all its children
killasgroup=true
redirect_stderr=true
stdout_logfile=%(here)s/run/%(program_name)s.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3

; An example, which runs: hello.py beside this file. Make it yours, or put your own in its place.
[program:hello]
command=python hello.py
directory=%(here)s
; it says READY=1 when it serves: until then it is STARTING. A program that says nothing: type=simple
type=notify
; it is started when these are ready; not ATLAS, which no service has to wait for
; depends_on=my-database
; another port than the one in hello.py, or 0 for one that is free
; environment=CDN_PORT="0"
autorestart=unexpected
exitcodes=0,78
startsecs=0
stopwaitsecs=15
killasgroup=true
redirect_stderr=true
stdout_logfile=%(here)s/run/%(program_name)s.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3

; A program in any language, as a member of the fleet: ready once it answers, unhealthy when it does not. $PORT is a
; free one.
; [program:web]
; command=cdn-run --http http://127.0.0.1:$PORT/ -- python -m http.server --bind 127.0.0.1 $PORT
; autorestart=unexpected
; exitcodes=0,78
; startsecs=0
; stopwaitsecs=15
; redirect_stderr=true
; stdout_logfile=%(here)s/run/%(program_name)s.log
"""

SERVICE = '''\
"""hello: a service to begin with. ``curl 127.0.0.1:18700/hello/you``"""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cdn_daemon import Band, Limits, MiB, Service, run

greeted = {}


async def hello(request):
    name = request.path_params["name"]
    greeted[name] = greeted.get(name, 0) + 1
    return PlainTextResponse(f"hello, {name}\\n")


service = Service(
    "hello",
    app=Starlette(routes=[Route("/hello/{name}", hello)]),
    port=18700,
    limits=Limits(rss_bytes=Band(soft=256 * MiB, hard=384 * MiB, for_s=10)),
)


@service.check(every_s=5, timeout_s=1, fails_after=3)
async def remembers():
    """Unhealthy if it raises, returns False or a reason, or takes over a second, three times in a row."""
    return len(greeted) < 1_000_000 or "too many have been greeted"


@service.shed
def forget(what):
    """Called with what there is too much of, such as rss_bytes, before that has to be restarted; makes it less."""
    greeted.clear()


if __name__ == "__main__":
    run(service)
'''

FILES = {"supervisord.conf": CONF, "hello.py": SERVICE}


@click.command("init")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path, file_okay=False))
@click.pass_context
def command(ctx: click.Context, directory: Path) -> int:
    """Write a configuration to begin with.

    In DIR, or here: a supervisord.conf with ATLAS and one example, hello.py, which runs as it is. Nothing that is
    there is written over.

    Exit code: 0 written, 1 there is one already, or it cannot be written.

    \b
    Examples:
      cdnctl init
      cdnctl init ~/fleet && cd ~/fleet && cdnctl up
    """
    place = directory.absolute()
    _refuse_long(place)
    for name in FILES:
        if os.path.lexists(place / name):
            raise Problem(f"cannot write {place / name}: it is there already; choose another directory", Exit.FAILED)
    written = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            with (place / name).open("x") as file:  # another init may have been quicker
                file.write(text)
            written.append(f"wrote {place / name}")
    except OSError as error:
        raise Problem(f"cannot write into {place}: {error.strerror}", Exit.FAILED) from error
    go = "" if place == Path.cwd() else f"cd {shlex.quote(str(place))} && "
    write([*written, f"next: {go}cdnctl up"])
    return Exit.OK


def _refuse_long(place: Path) -> None:
    """Raise Problem where no socket would fit: found out now, not after the configuration is written."""
    longest = len(os.fsencode(place / "run" / LONGEST_SOCKET_NAME))
    if longest > MAX_SOCKET_PATH_BYTES:
        raise Problem(
            f"cannot begin in {place}: socket paths in its run/ would have {longest} bytes, the limit is "
            f"{MAX_SOCKET_PATH_BYTES}; choose a directory with a path at least {longest - MAX_SOCKET_PATH_BYTES} "
            f"bytes shorter",
            Exit.FAILED,
        )
