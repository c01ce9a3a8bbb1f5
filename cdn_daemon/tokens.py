"""A secret in a file that only its owner can read: whoever sends it may give orders.

The file is made with a new token if there is none, so that nobody has to set one up.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import re
import secrets
from pathlib import Path

_TOKEN = re.compile(r"[\x21-\x7e]{16,256}")


class TokenError(Exception):
    """There is a file, and it holds no token that may be trusted; the text says what to do."""


def token_in(path: Path) -> bytes:
    """The token that the file holds, a new one if there is no file; raises TokenError."""
    try:
        token = _found(path) or _made(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"cannot use the token in {path}: {error}") from error
    if not _TOKEN.fullmatch(token):
        raise TokenError(f"cannot use the token in {path}: it must be 16 to 256 characters; delete it for a new one")
    return token.encode()


def _found(path: Path) -> str:
    """Empty if there is none, or a full disk has taken nothing of it."""
    try:
        with open(path) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise TokenError(f"cannot use the token in {path}: others may read it; chmod 600 it")
            return file.read().strip()
    except FileNotFoundError:
        return ""


def _made(path: Path) -> str:
    """A new one, unless another process has been quicker."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        token = file.read().strip()
        if not token:
            token = secrets.token_urlsafe(32)
            file.write(f"{token}\n")
    return token


def is_bearer(authorization: bytes, token: bytes) -> bool:
    """Whether the Authorization header's value is ``Bearer`` and this token (RFC 6750); takes the same time for any."""
    scheme, _, sent = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(sent.strip(), token)
