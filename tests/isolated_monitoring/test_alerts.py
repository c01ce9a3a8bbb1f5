"""Lanes of alerts by themselves."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from services.isolated_monitoring import alerts
from services.isolated_monitoring.monitor import Monitor
from services.isolated_monitoring.settings import Channel
from services.isolated_monitoring.suspicion import FairClock
from services.isolated_monitoring.target import Kind, Target
from services.isolated_monitoring.watched import Watched


@pytest.mark.parametrize("how", ["file", "command"])
def test_cancelled_as_a_delivery_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Also in the turn of the loop in which what it waits for is done, the lane ends: nobody waits for it forever."""
    append, communicate = alerts.append, asyncio.subprocess.Process.communicate
    channel = Channel(file=str(tmp_path / "told.jsonl"))
    if how == "command":
        channel = Channel(command=(sys.executable, "-c", "input()"))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        arrived: list[str] = []
        lane = alerts.Lane(channel, arrived.append)
        task = asyncio.create_task(lane.run())

        def cancel_soon() -> None:
            time.sleep(0.05)  # the file's thread has ended by then
            loop.call_soon(lambda: loop.call_soon(task.cancel))

        def appending(path: Path, line: bytes, alert_id: str) -> None:
            append(path, line, alert_id)
            loop.call_soon_threadsafe(cancel_soon)

        async def communicating(
            process: asyncio.subprocess.Process, content: bytes | None = None
        ) -> tuple[bytes, bytes]:
            said = await communicate(process, content)
            loop.call_soon(task.cancel)
            return said

        monkeypatch.setattr(alerts, "append", appending)
        monkeypatch.setattr(asyncio.subprocess.Process, "communicate", communicating)
        lane.put({"id": "a1", "title": "it is down"})
        done, _ = await asyncio.wait({task}, timeout=60)
        task.cancel()
        assert done, "its cancellation was forgotten"
        assert task.cancelled()
        assert lane.delivered + lane.failed <= 1

    asyncio.run(run())


def test_what_nobody_foresaw_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alert is kept: an exception that ended the monitor would end each that came after it."""
    monkeypatch.setattr(alerts, "BACKOFF_S", 0.001)
    append, faults = alerts.append, [UnicodeError("no such name"), RuntimeError("a bug")]

    def appending(path: Path, line: bytes, alert_id: str) -> None:
        if faults:
            raise faults.pop()
        append(path, line, alert_id)

    async def run() -> None:
        monkeypatch.setattr(alerts, "append", appending)
        arrived = asyncio.Event()
        lane = alerts.Lane(Channel(file=str(tmp_path / "told.jsonl")), lambda _: arrived.set())
        task = asyncio.create_task(lane.run())
        lane.put({"id": "a1", "title": "it is down"})
        async with asyncio.timeout(60):
            await arrived.wait()
        assert (lane.failed, lane.delivered, lane.problem) == (2, 1, "")
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(run())
    assert "it is down" in (tmp_path / "told.jsonl").read_text()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"reasons": ["\\ud800 is half of a pair"]}', "? is half of a pair"),
        (b"[" * 60_000, "it does not say why"),
        (b'{"phase": "starting"}', "starting"),
    ],
)
def test_a_services_reason_can_be_told(body: bytes, told: str) -> None:
    """Whatever it answers."""
    monitor = Monitor.__new__(Monitor)
    monitor.fair = FairClock()
    watched = Watched(Target(name="web", kind=Kind.SERVICE))
    monitor._hear_readiness(watched, 503, body)
    assert watched.not_ready == told
    assert watched.not_ready.encode()
