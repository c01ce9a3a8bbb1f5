"""The page as a person uses it: a real browser, a real fleet, keys and clicks. Screenshots are kept as artifacts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from bus import messages as m
from bus.endpoints import RunDir
from bus.publisher import Publisher
from tests.atlas.browser import Tab, browser, executable
from tests.atlas.test_atlas import ATLAS, spawn  # noqa: F401
from tests.atlas.test_page import Spawn
from tests.support import Supervisord, free_port, until

pytestmark = pytest.mark.skipif(executable() is None, reason="Chromium is not installed (Debian: apt install chromium)")

DESKTOP, PHONE = (1440, 900), (390, 844)


@pytest.fixture
def tab() -> Iterator[Tab]:
    """A tab of a browser of its own, on a desk."""
    with browser() as opened:
        opened.window(*DESKTOP)
        yield opened


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where screenshots go."""
    return Path(os.environ.get("CDN_TEST_ARTIFACTS") or tmp_path).absolute()


def photograph(tab: Tab, artifacts: Path, name: str) -> None:
    """Keep the page as it is now, on a desk and on a phone, in light and dark."""
    for device, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for scheme in ("light", "dark"):
            tab.window(*size, dark=scheme == "dark", phone=device == "phone")
            wide = tab.js("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{name} is {wide} px wider than a {device}"
            path = tab.screenshot(artifacts / f"page-{name}-{device}-{scheme}.png")
            assert path.stat().st_size > 10_000
    tab.window(*DESKTOP)


def test_a_night_at_the_page(run_dir: RunDir, tab: Tab, artifacts: Path) -> None:
    """Find a service by keyboard, restart it with the token, see the outcome; kill it, and see why."""
    port = free_port()
    programs = {
        "atlas": {"command": "python -m services.atlas", "environment": f'CDN_PORT="{port}"', "type": "notify"},
        "tiny": {
            "command": "python -m tests.cdn_daemon.tiny",
            "environment": 'CDN_PORT="0",CDN_LIMIT_RSS_BYTES="56m:4g"',
            "type": "notify",
            "stopwaitsecs": "5",
        },
        "later": {"command": "python -m tests.cdn_daemon.tiny", "autostart": "false"},
    }
    programs["twin"] = {**programs["tiny"], "environment": 'CDN_PORT="0",CDN_INSTANCE="twin"'}
    with Supervisord(run_dir.path, programs) as supervisord:
        until(lambda: run_dir.operator_token.exists())
        tab.go(f"http://127.0.0.1:{port}/")
        tab.wait_for('[data-name="tiny"]', "running", "healthy")
        tab.wait_for(".summary", "4 services", "1 stopped", "3 healthy")
        photograph(tab, artifacts, "fleet")
        for width, height in ((1600, 900), (1280, 720), (1100, 700), (925, 700), (800, 900)):
            tab.window(width, height)
            wide = tab.js("document.querySelector('[data-name=later] .reason').getBoundingClientRect().width")
            over = tab.js("[...document.querySelectorAll('.row')].some(e => e.scrollWidth > e.clientWidth)")
            assert (wide > 130, over) == (True, False), f"at {width} px the reason has {wide} px"
        tab.window(*DESKTOP)

        tab.press("/")
        tab.type("state:running tin")
        tab.wait_for(".summary", "1 shown")
        assert tab.js("[...document.querySelectorAll('.row')].map(e => e.dataset.name).join()") == "tiny"
        tab.press("ArrowDown")
        tab.press("Enter")
        tab.wait_for(".service-head", "tiny", "healthy")
        tab.wait_for(".strip", "#1")
        tab.wait_for(".charts", "soft 56.0 MiB", "hard 4.0 GiB")
        memory = "document.querySelector('.plot[aria-label^=\"Memory\"] .limits').getAttribute('d')"
        until(lambda: tab.js(memory).count("M") == 1)  # of the limits the one that is near

        tab.click(".buttons button", "Restart")
        tab.wait_for("dialog", "Restart tiny", "Operator token")
        tab.type("not the token at all")
        tab.press("Enter")
        tab.wait_for("dialog .problem", "That is not the operator token.")
        tab.type(run_dir.operator_token.read_text().strip())
        photograph(tab, artifacts, "restart")
        tab.press("Enter")
        tab.wait_for(".toast", "restart tiny: done in")
        tab.wait_for(".strip", "#2")

        tab.click('[role="tab"]', "Incarnations")
        os.kill(supervisord.pid("tiny"), signal.SIGKILL)
        tab.wait_for(".strip", "#3")
        tab.wait_for(".life", "#2", "SIGKILL")
        tab.click(".life summary", "#2")
        tab.wait_for(".life-body", "killed by SIGKILL")
        tab.click('[role="tab"]', "Log")
        tab.wait_for(".log", "tiny #3 listens")
        tab.click('[role="tab"]', "Commands")
        tab.wait_for(".panel", "restart", "http@127.0.0.1", "done in")
        tab.click('[role="tab"]', "Loop")
        tab.wait_for(".panel", "Mode", "What it changed")
        tab.click('[role="tab"]', "Events")
        tab.wait_for(".panel", "started anew: #2 → #3")
        photograph(tab, artifacts, "service")

        tab.press("Escape")
        tab.wait_for(".summary", "4 services")
        assert tab.js("document.activeElement.textContent") == "tiny"
        tab.press("/")
        tab.type("t state:running")
        tab.wait_for(".summary", "3 shown")
        tab.type(" name:i")
        tab.click(".controls button", "Restart these 2…")
        tab.wait_for("dialog", "Restart 2 services", "tiny, twin", "At a time")
        tab.press("Enter")
        tab.wait_for(".toast", "restart 2 services: 2 of 2 done")
        assert len(tab.js("sessionStorage.getItem('atlas-operator-token')")) > 40
        tab.press("Escape")
        tab.wait_for('[data-name="later"]', "stopped")
    assert [problem for problem in tab.problems if "401" not in problem] == []


class Simulated:
    """Services that only say that they are: a thread that publishes their statuses twice a second."""

    def __init__(self, run_dir: RunDir, reasons: dict[str, str]) -> None:
        self._run_dir = run_dir
        self._reasons = reasons
        """Name → why it is degraded; empty: healthy."""
        self._ended = Event()
        self._thread = Thread(target=self._publish)

    def __enter__(self) -> Simulated:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _publish(self) -> None:
        publisher = Publisher(self._run_dir.telemetry)
        seq = 0
        while not self._ended.wait(0.5):
            seq += 1
            for name, reason in self._reasons.items():
                publisher.publish(_status(name, seq, reason))
        publisher.close()


def test_what_services_say_stays_text(spawn: Spawn, run_dir: RunDir, tab: Tab) -> None:  # noqa: F811
    """A reason that is HTML is shown as it is written, and nothing of it runs."""
    hostile = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    atlas = spawn(*ATLAS)
    with Simulated(run_dir, {"hostile": hostile}):
        tab.go(atlas.url() + "/")
        tab.wait_for(".row", hostile)
        tab.go(atlas.url() + "/#/service/hostile")
        tab.wait_for(".service-reason", hostile)
    tab.go(atlas.url() + "/#/service/" + "%3Cimg%20src%3Dx%20onerror%3D%22document.title%3D'pwned'%22%3E")
    tab.wait_for(".service-head", "<img src=x", "not known to ATLAS")
    assert tab.js("document.querySelectorAll('main img, main script').length") == 0
    assert tab.js("document.title") != "pwned"


def test_atlas_goes_and_comes_back(spawn: Spawn, tab: Tab) -> None:  # noqa: F811
    """The page says since when it hears nothing, and goes on by itself; the token leaves the address at once."""
    port = str(free_port())
    atlas = spawn(*ATLAS, CDN_PORT=port)
    tab.go(f"{atlas.url()}/#token=abcdefghijklmnop")
    tab.wait_for('[data-name="atlas"]', "healthy")
    assert "token" not in tab.js("location.href")
    assert tab.js("sessionStorage.getItem('atlas-operator-token')") == "abcdefghijklmnop"
    pid = str(atlas.pid)
    os.kill(atlas.pid, signal.SIGKILL)
    atlas.wait()
    tab.wait_for("#banner", "Disconnected since")
    tab.wait_for("#link", "disconnected")
    assert tab.text(".row .name") == "atlas"
    spawn(*ATLAS, CDN_PORT=port)
    tab.wait_for("#link", "live")
    assert tab.text("#banner") == ""
    tab.js("location.hash = '#/service/atlas'")
    tab.wait_for(".strip", "#2")
    assert pid not in tab.text(".strip")


def test_a_thousand_services(spawn: Spawn, run_dir: RunDir, tab: Tab, artifacts: Path) -> None:  # noqa: F811
    """Only what is in sight is in the document; the last is one key away, and one word finds any."""
    atlas = spawn(*ATLAS)
    row, box = "document.activeElement.closest('.row')", "document.activeElement.getBoundingClientRect()"
    with Simulated(run_dir, {f"edge-{n}": "over its soft limit" if n % 97 == 5 else "" for n in range(999)}):
        tab.go(atlas.url() + "/")
        tab.wait_for(".summary", "1000 services", "11 degraded")
        assert 10 < tab.js("document.querySelectorAll('.row').length") < 80
        photograph(tab, artifacts, "thousand")
        tab.press("/")
        tab.press("ArrowDown")
        for key, index in (("Home", "2"), ("End", "1001")):

            def arrives(key: str = key, index: str = index) -> bool:
                tab.press(key)
                return bool(tab.js(f"{row}?.getAttribute('aria-rowindex')") == index)

            until(arrives)
            assert tab.js(f"{box}.top >= 0 && {box}.bottom <= innerHeight")
        assert tab.js("document.querySelectorAll('.row').length") < 80
        tab.press("/")
        tab.type("edge-77")
        tab.wait_for(".summary", "11 shown")


def _status(name: str, seq: int, reason: str) -> m.DaemonStatus:
    return m.DaemonStatus(
        service=name,
        instance=name,
        host="host-1",
        incarnation=1,
        seq=seq,
        pid=1,
        time_s=time.time(),
        monotonic_s=time.monotonic(),
        uptime_s=100.0 + seq,
        phase=m.LifecyclePhase.SERVING,
        health=m.HealthStatus.DEGRADED if reason else m.HealthStatus.HEALTHY,
        reasons=(reason,) if reason else (),
    )
