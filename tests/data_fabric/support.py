"""A served application, a client for it, and rows to fill it with."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import airportsdata

from services.data_fabric.limits import Limits
from services.data_fabric.server import make_app
from services.data_fabric.store import Store
from tests.support import Answer, HttpClient, ready, served

AIRPORTS = Path(airportsdata.__file__).with_name("airports.csv")
TOP_20 = "SELECT icao, name, city, elevation FROM airports WHERE country = ? ORDER BY elevation DESC LIMIT 20"


class Client(HttpClient[Answer]):
    """Requests to one server."""

    def __init__(self, port: int) -> None:
        super().__init__(port, Answer)

    def sql(self, sql: str, params: Any = (), path: str = "/sql", **more: Any) -> Answer:
        """POST /sql."""
        return self.call("POST", path, {"sql": sql, "params": params, **more})

    def load(self, name: str, text: str | bytes, kind: str = "csv", method: str = "POST") -> Answer:
        """Upload a file."""
        body = text.encode() if isinstance(text, str) else text
        return self.call(method, f"/sources/{name}?kind={kind}", body)


@contextmanager
def serving(directory: Path, limits: Limits | None = None, files: Path | None = None) -> Iterator[tuple[Client, Store]]:
    """The application on a server of its own, in a thread of this process."""
    app = make_app(directory, limits=limits, files=files)
    with served(app) as port:
        yield Client(port), app.state.store


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """The service as its supervisor would start it, ready."""
    with ready(run_path, "services.data_fabric", Client, **env) as (client, service):
        yield client, service.process


def as_csv(rows: list[list[Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
