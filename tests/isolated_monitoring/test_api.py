"""What is asked of the monitor at the same time, in the order that a test says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from services.isolated_monitoring import store
from services.isolated_monitoring.api import Api
from services.isolated_monitoring.checks import Check
from services.isolated_monitoring.monitor import Monitor
from services.isolated_monitoring.store import Store
from services.isolated_monitoring.web import RefusedError, Request

ID = "00000000-0000-4000-8000-000000000001"
HEADERS = {"host": "localhost", "x-api-key": "t"}


def api_of(database: Any) -> tuple[Api, dict[str, Check]]:
    """With one check that has been heard, and its memory."""
    checks = {ID: Check(uuid=ID, name="before", status="up", n_pings=1, last_ping_s=0.0)}
    settings = SimpleNamespace(hosts=(), token="")
    clock = SimpleNamespace(unix_s=lambda: 100.0)
    monitor = cast(Monitor, SimpleNamespace(settings=settings, checks=checks, clock=clock, store=database))
    return Api(monitor, token="t", ping_key="p", incarnation=1, started_s=0.0), checks


def changing(name: str) -> Request:
    """A request that gives it another name."""
    return Request("POST", f"/api/v3/checks/{ID}", {}, dict(HEADERS), b'{"name": "%b"}' % name.encode())


def test_a_ping_while_a_check_is_changed(tmp_path: Path) -> None:
    """Neither is lost, in memory nor on the disk."""
    database = Store(tmp_path / "monitor.db")
    database.open()
    api, checks = api_of(database)

    async def run() -> list[Any]:
        database.start(asyncio.get_running_loop())
        changed, heard = await asyncio.gather(
            api(changing("after")), api(Request("GET", f"/ping/{ID}/start", {}, dict(HEADERS)))
        )
        assert (changed.status, heard.status) == (200, 200)
        kept: list[Any] = await database.do(store.all_of("check"))
        return kept

    try:
        kept = asyncio.run(run())
    finally:
        database.stop()
    assert (checks[ID].name, checks[ID].n_pings, checks[ID].last_start_s) == ("after", 2, 100.0)
    assert kept == [checks[ID].plain()]


def test_a_check_is_deleted_while_it_is_changed(tmp_path: Path) -> None:
    """Whichever is first, it is gone, and does not come back from the disk."""
    database = Store(tmp_path / "monitor.db")
    database.open()
    api, checks = api_of(database)

    async def run() -> list[Any]:
        database.start(asyncio.get_running_loop())
        await database.do(store.put("check", ID, checks[ID].plain()))
        deleting = Request("DELETE", f"/api/v3/checks/{ID}", {}, dict(HEADERS))
        deleted, changed = await asyncio.gather(api(deleting), api(changing("after")), return_exceptions=True)
        assert not isinstance(deleted, BaseException)
        assert isinstance(changed, RefusedError)
        kept: list[Any] = await database.do(store.all_of("check"))
        return kept

    try:
        assert asyncio.run(run()) == []
    finally:
        database.stop()
    assert checks == {}


def test_what_is_not_kept_has_not_changed() -> None:
    """Neither a check, nor that there is another, nor that there is none."""

    class Full:
        async def do(self, _: store.Job) -> None:
            raise store.StoreError("the disk is full")

    api, checks = api_of(Full())

    async def refused(request: Request) -> int:
        try:
            await api(request)
        except RefusedError as error:
            return error.status
        return 0

    before = dict(checks)
    assert asyncio.run(refused(changing("after"))) == 507
    assert asyncio.run(refused(Request("POST", "/api/v3/checks", {}, dict(HEADERS), b'{"name": "new"}'))) == 507
    assert asyncio.run(refused(Request("DELETE", f"/api/v3/checks/{ID}", {}, dict(HEADERS)))) == 507
    assert checks == before


def test_a_job_with_a_bug_fails_by_itself(tmp_path: Path) -> None:
    """The others are kept, and the thread lives."""
    database = Store(tmp_path / "monitor.db")
    database.open()

    def wrong(_: Any) -> None:
        raise TypeError("a bug")

    async def run() -> list[Any]:
        database.start(asyncio.get_running_loop())
        async with asyncio.timeout(60):
            jobs = (store.put("check", "a", 1), wrong, store.put("check", "b", 2))
            return await asyncio.gather(
                *map(database.do, jobs), database.do(store.all_of("check")), return_exceptions=True
            )

    try:
        first, bug, second, kept = asyncio.run(run())
    finally:
        database.stop()
    assert (first, second, sorted(kept)) == (None, None, [1, 2])
    assert isinstance(bug, store.StoreError)
    assert "a bug" in str(bug)
