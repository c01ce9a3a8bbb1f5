"""What the warden gives back when supervisord ends or reloads, whatever stands in its way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bus.codec import FrameError
from cdn_daemon.warden.boundary import Boundary
from cdn_daemon.warden.warden import Warden


def test_a_table_too_large_for_a_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be sent; all else is closed as ever."""
    done: list[str] = []

    def too_large(_: object) -> None:
        raise FrameError("too_large", "cannot send")

    def closing(name: str) -> Any:
        return SimpleNamespace(close=lambda: done.append(name), publish=too_large, fd=1, fileno=lambda: 2)

    monkeypatch.setattr("cdn_daemon.warden.reach.forget_fd", lambda *_: None)
    monkeypatch.setattr(Warden, "status", lambda _: None)
    warden: Any = object.__new__(Warden)
    warden.boundary = Boundary(lambda _: None)
    warden._supervisord = warden._table = SimpleNamespace(pids=dict)
    warden._restarts = SimpleNamespace(write_postmortems=lambda: False, orphans=closing("orphans"))
    warden._bailiff = SimpleNamespace(sweep_out=lambda *_: done.append("swept"))
    warden._node, warden._inbox, warden._waker = closing("node"), closing("inbox"), closing("waker")
    warden.close()
    assert done == ["node", "inbox", "orphans", "waker", "swept"]
    assert warden.boundary.counts == {"errors": 1}
