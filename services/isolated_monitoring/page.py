"""The status page: one file that loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_bytes()
