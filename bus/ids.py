"""Ids for requests, commands and events."""

import os


def new_id() -> str:
    """Unique, and not to be guessed."""
    return os.urandom(16).hex()
