"""A served application, a client for it, and places to fill it with."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import airportsdata
import uvicorn

from services.geospatial.limits import Limits
from services.geospatial.places import Places
from services.geospatial.server import make_app
from tests.support import ROOT, environment, free_port, until

GEOJSON = "application/geo+json"
SQUARE: dict[str, Any] = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]}
TRIANGLE: dict[str, Any] = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [0, 10], [0, 0]]]}


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal, which must have the right form."""
        reason: dict[str, Any] = self.json["error"]
        assert set(reason) == {"status", "what", "value", "limit", "next"}
        assert reason["status"] == self.status
        assert reason["what"].startswith("cannot ")
        return reason

    @property
    def ids(self) -> list[str]:
        """Of the features."""
        assert self.status == 200, self.body
        return [one["id"] for one in self.json["features"]]

    def link(self, rel: str) -> str | None:
        """The address of that link, if there is one."""
        return next((one["href"] for one in self.json["links"] if one["rel"] == rel), None)


class Client:
    """Requests to one server, with its token unless told otherwise."""

    def __init__(self, port: int, token: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._token = token

    def call(self, method: str, path: str, body: Any = None, *, token: bool = True, **headers: str) -> Answer:
        """One request; a body that is no bytes is sent as JSON."""
        sent = {"Content-Type": GEOJSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if token:
            sent["Authorization"] = f"Bearer {self._token.read_text().strip()}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        url = path if path.startswith("http") else self.url + path
        request = urllib.request.Request(url, data=body, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def get(self, path: str) -> Answer:
        """A question; it needs no token."""
        return self.call("GET", path, token=False)

    def load(self, name: str, *features: dict[str, Any]) -> None:
        """A collection of these."""
        answer = self.call("PUT", f"/collections/{name}", collection(*features))
        assert answer.status in (200, 201), answer.body

    def at(self, object: str, *lonlats: tuple[float, float]) -> dict[str, Any]:
        """The object is there now, and then there."""
        found: dict[str, Any] = {}
        for lon, lat in lonlats:
            answer = self.call("PUT", f"/tracks/{object}", {"positions": [{"lon": lon, "lat": lat}]})
            assert answer.status == 200, answer.body
            found = answer.json
        return found


def feature(id: str | None, geometry: dict[str, Any] | None, **properties: Any) -> dict[str, Any]:
    """A feature."""
    made: dict[str, Any] = {"type": "Feature", "geometry": geometry, "properties": properties}
    return made if id is None else {**made, "id": id}


def point(id: str | None, lon: float, lat: float, **properties: Any) -> dict[str, Any]:
    """A feature that is a point."""
    return feature(id, {"type": "Point", "coordinates": [lon, lat]}, **properties)


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    """A collection of them."""
    return {"type": "FeatureCollection", "features": list(features)}


def airports() -> list[dict[str, Any]]:
    """28,000 real ones."""
    return [
        point(code, one["lon"], one["lat"], name=one["name"], country=one["country"], elevation=one["elevation"])
        for code, one in airportsdata.load("ICAO").items()
    ]


@contextmanager
def serving(directory: Path, limits: Limits | None = None) -> Iterator[tuple[Client, Places]]:
    """The application on a server of its own, in a thread of this process."""
    token = directory / "token"
    app = make_app(directory, token, limits=limits)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server listens")
        yield Client(server.servers[0].sockets[0].getsockname()[1], token), app.state.places
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """The service as its supervisor would start it, ready."""
    port = free_port()
    log = (run_path / "service.log").open("ab")
    service = subprocess.Popen(
        [sys.executable, "-m", "services.geospatial"],
        env=environment(run_path, CDN_PORT=str(port), **env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    log.close()
    client = Client(port, run_path / "cdn-geospatial.token")

    def ready() -> bool:
        assert service.poll() is None, (run_path / "service.log").read_text()
        try:
            return client.get("/readyz").status == 200
        except OSError:
            return False

    try:
        until(ready, what="the service is ready")
        yield client, service
    finally:
        if service.poll() is None:
            service.kill()
        service.wait(30)
