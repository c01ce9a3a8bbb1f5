"""Lanes of alerts by themselves."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from services.isolated_monitoring import alerts
from services.isolated_monitoring.settings import Channel


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
