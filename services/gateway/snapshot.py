"""The last known routes on disk, so that a gateway started while ATLAS is dead still routes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.gateway.routes import Known

_BYTES_MAX = 16 << 20


class _Snapshot(msgspec.Struct, kw_only=True):
    version: int = 1
    known: dict[str, Known]


class SnapshotError(Exception):
    """The file is there and cannot be used; the text says why."""


def save(path: Path, known: Mapping[str, Known]) -> None:
    """Replace the file by what is known, all or nothing; raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with open(fresh, "wb") as file:
        file.write(msgspec.json.encode(_Snapshot(known=dict(known))))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def load(path: Path) -> dict[str, Known]:
    """What was known; empty if there is no file. Raises SnapshotError if what is there is no snapshot."""
    try:
        with open(path, "rb") as file:
            content = file.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SnapshotError(f"cannot read the last routes in {path}: {error.strerror}") from error
    if len(content) > _BYTES_MAX:
        raise SnapshotError(f"cannot use the last routes in {path}: over {_BYTES_MAX} bytes")
    try:
        snapshot = msgspec.json.decode(content, type=_Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"cannot use the last routes in {path}: {error}") from error
    if snapshot.version != 1:
        raise SnapshotError(f"cannot use the last routes in {path}: version {snapshot.version}, this reads 1")
    return snapshot.known
