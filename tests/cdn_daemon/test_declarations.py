"""Wrong declarations fail when declared, wrong settings when read, and each says what is wrong."""

from __future__ import annotations

import pkgutil
import time
import types
from typing import Any

import pytest

import cdn_daemon
from bus.messages import OodaMode
from cdn_daemon import DeclarationError, Service, long_call, work
from cdn_daemon.long_calls import LONG_CALLS
from cdn_daemon.settings import SettingError, read_settings
from cdn_daemon.works import Works


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Never called."""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "a/b"}, "cannot name a service 'a/b'"),
        ({"name": ""}, "cannot name a service ''"),
        ({"app": None}, "cannot declare web with nothing: it must be one of an ASGI application"),
        ({"app": 3}, r"cannot serve 3 as web: it must be one of"),
        ({"wsgi": print}, r"cannot declare web with app and wsgi: it must be one of"),
        ({"app": None, "main": "loop"}, "cannot serve 'loop' as web"),
        ({"port": None}, "cannot serve web without a port: 0 lets the system choose"),
        ({"app": None, "wsgi": print, "threads": 0}, "web on 0 threads: it must be 1 to 1000"),
        ({"port": 70000}, "port 70000 for web: it must be 0 to 65535"),
        ({"drain_s": 0}, "drain web for 0 s"),
    ],
)
def test_wrong_services(arguments: dict[str, Any], text: str) -> None:
    """The field, its value and the limit."""
    with pytest.raises(DeclarationError, match=text):
        Service(**{"name": "web", "app": app, "port": 1, **arguments})


def test_wrong_checks() -> None:
    """Periods that cannot be, and a name declared twice."""
    service = Service("web", app=app, port=0)
    with pytest.raises(DeclarationError, match=r"every_s=0 and timeout_s=1.0 must be over 0"):
        service.check(every_s=0)(lambda: None)

    @service.check()
    def fine() -> None:
        """Passes."""

    with pytest.raises(DeclarationError, match="check fine of web twice"):
        service.check()(fine)


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"CDN_PORT": "http"}, "CDN_PORT=http: it must be a number from 0 to 65535"),
        ({"CDN_PORT": "70000"}, "CDN_PORT=70000"),
        ({"CDN_PORT": "80.5"}, r"CDN_PORT=80\.5"),
        ({"CDN_PORT": "nan"}, "CDN_PORT=nan"),
        ({"CDN_DRAIN_S": "-1"}, "CDN_DRAIN_S=-1: it must be a number from 0.1 to 3600"),
        ({"CDN_OODA": "maybe"}, "CDN_OODA=maybe: it must be one of off, shadow, on"),
        ({"CDN_HOST": "localhost"}, "CDN_HOST=localhost: it must be an IP address"),
        ({"CDN_HOST": "0.0.0.0"}, "no loopback address.*CDN_ALLOW_PUBLIC=yes"),
        ({"CDN_ALLOW_PUBLIC": "perhaps"}, "CDN_ALLOW_PUBLIC=perhaps: it must be yes or no"),
        ({"CDN_ORPHANS": "kill"}, "CDN_ORPHANS=kill: it must be one of replace, adopt"),
        ({"CDN_NICE": "nice"}, "CDN_NICE=nice: it must be a whole number from -20 to 19"),
        ({"CDN_LIMIT_RSS": "1g"}, "cannot use CDN_LIMIT_RSS: it must be one of .*CDN_LIMIT_RSS_BYTES"),
        ({"CDN_RLIMIT_AS": "1g"}, "cannot use CDN_RLIMIT_AS: it must be one of CDN_RLIMIT_DATA"),
        ({"CDN_INSTANCE": "../../etc/web"}, "CDN_INSTANCE=../../etc/web: it must be of letters"),
        ({"CDN_INSTANCE": "web 2"}, "CDN_INSTANCE=web 2: it must be"),
        ({"CDN_INSTANCE": "w" * 300}, "CDN_INSTANCE=w{80}: .* at most 100 bytes"),
    ],
)
def test_wrong_settings(environ: dict[str, str], text: str) -> None:
    """The variable, its value and what it may be."""
    with pytest.raises(SettingError, match=text):
        read_settings(Service("web", app=app, port=0), environ)


def test_settings_override_declarations() -> None:
    """The environment has the last word; an empty variable says nothing."""
    service = Service("web", app=app, port=8080, drain_s=3.0)
    declared = read_settings(service, {"CDN_PORT": ""})
    assert (declared.instance, declared.host, declared.port, declared.drain_s) == ("web", "127.0.0.1", 8080, 3.0)
    environ = {"CDN_PORT": "0", "CDN_INSTANCE": "web-2", "CDN_HOST": "0.0.0.0", "CDN_ALLOW_PUBLIC": "yes"}
    changed = read_settings(service, environ | {"CDN_OODA": "shadow", "CDN_DRAIN_S": "0.5"})
    assert (changed.instance, changed.host, changed.port, changed.drain_s) == ("web-2", "0.0.0.0", 0, 0.5)
    assert changed.ooda_mode is OodaMode.SHADOW


@pytest.mark.parametrize("seconds", [0.0, -1.0, 4000.0, float("nan")])
def test_wrong_long_calls(seconds: float) -> None:
    """A length that cannot be is refused before anything runs."""
    with pytest.raises(ValueError, match="must be over 0 and at most 3600"), long_call(seconds):
        raise AssertionError("entered")


def test_long_calls_overlap() -> None:
    """The longest that is under way counts, and none when all are over."""
    with long_call(100):
        outer_s = LONG_CALLS.until_s()
        with long_call(1):
            assert LONG_CALLS.until_s() == outer_s
        assert LONG_CALLS.until_s() == outer_s
    assert LONG_CALLS.until_s() == 0.0


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, 1e9, float("nan")])
def test_wrong_deadlines(deadline_s: float) -> None:
    """A deadline that cannot be is refused before anything runs."""
    with pytest.raises(ValueError, match="it must be over 0, at most 86400"), work("x", deadline_s=deadline_s):
        raise AssertionError("entered")


def test_works() -> None:
    """The first that should have been over is told; what ended, or was postponed, is not."""
    works = Works()
    long, short = works.begin("long", 100), works.begin("short", 50)
    now_s = time.monotonic()
    assert works.overdue(now_s) is None
    late = works.overdue(now_s + 200)
    assert late is not None
    assert late.name == "short"
    works.postpone(60)
    assert works.overdue(now_s + 55) is None
    works.end(short)
    works.end(long)
    assert works.overdue(now_s + 1000) is None


@pytest.mark.parametrize("name", sorted(cdn_daemon._HOMES))
def test_public_names(name: str) -> None:
    """Each is what it is called, and no module of the same name hides it, whatever was imported before."""
    for module in pkgutil.iter_modules(cdn_daemon.__path__):
        assert module.name != name
    assert not isinstance(getattr(cdn_daemon, name), types.ModuleType)
