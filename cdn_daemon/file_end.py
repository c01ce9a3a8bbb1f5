"""The end of a file that somebody else writes, such as a log."""

from __future__ import annotations

import os
import stat


def end_of(path: str, most_bytes: int) -> tuple[int, str]:
    """Size and end of a regular file, from the beginning of a line.

    OSError, also for what is no regular file: a named pipe would hold up whoever opens it.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file", path)
        file.seek(max(0, status.st_size - most_bytes))
        content = file.read(most_bytes)
    if status.st_size > most_bytes:
        content = content.partition(b"\n")[2] or content
    return status.st_size, content.decode(errors="replace")
