"""The end of a log file, and what is added to it, across rotation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_BLOCK_BYTES = 64 * 1024


def last(log: BinaryIO, count: int) -> bytes:
    """The last ``count`` lines; the file is then at its end."""
    end = log.seek(0, os.SEEK_END)
    if count == 0:
        return b""
    start, found = end, b""
    while start > 0 and found.count(b"\n", 0, len(found) - 1 if found.endswith(b"\n") else None) < count:
        size = min(_BLOCK_BYTES, start)
        start -= size
        log.seek(start)
        found = log.read(size) + found
    log.seek(end)
    return b"".join(found.splitlines(keepends=True)[-count:])


class Tail:
    """One log, followed by name: a file that takes its place, or is cut short, is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._partial = b""

    def begin(self, count: int) -> bytes:
        """Its last lines; nothing if there is no file yet. Raises OSError if it cannot be read."""
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            return b""
        return last(self._file, count)

    def more(self) -> bytes:
        """What was added since, in whole lines."""
        added = b""
        if self._file is not None:
            if os.fstat(self._file.fileno()).st_size < self._file.tell():
                self._file.seek(0)
            added = self._file.read()
        if (fresh := self._replacement()) is not None:
            if self._file is not None:
                added += self._file.read()  # written between the reading above and the renaming
                self._file.close()
            self._file = fresh
            added += fresh.read()
        text = self._partial + added
        whole = text.rfind(b"\n") + 1
        self._partial = text[whole:]
        return text[:whole]

    def _replacement(self) -> BinaryIO | None:
        try:
            now = self._path.stat()
            if self._file is not None:
                held = os.fstat(self._file.fileno())
                if (held.st_dev, held.st_ino) == (now.st_dev, now.st_ino):
                    return None
            return self._path.open("rb")
        except FileNotFoundError:  # between renaming and creating
            return None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
