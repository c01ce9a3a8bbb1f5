"""A served application, a client for it, and places to fill it with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import airportsdata

from services.geospatial.limits import Limits
from services.geospatial.places import Places
from services.geospatial.server import make_app
from tests import support
from tests.support import HttpClient, ready, served

GEOJSON = "application/geo+json"
SQUARE: dict[str, Any] = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]}
TRIANGLE: dict[str, Any] = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [0, 10], [0, 0]]]}


class Answer(support.Answer):
    """An answer, with what features it has."""

    @property
    def ids(self) -> list[str]:
        """Of the features."""
        assert self.status == 200, self.body
        return [one["id"] for one in self.json["features"]]

    def link(self, rel: str) -> str | None:
        """The address of that link, if there is one."""
        return next((one["href"] for one in self.json["links"] if one["rel"] == rel), None)


class Client(HttpClient[Answer]):
    """Requests to one server, with its token unless told otherwise."""

    def __init__(self, port: int, token: Path) -> None:
        super().__init__(port, Answer, token)

    def call(self, method: str, path: str, body: Any = None, *, token: str | bool = True, **headers: str) -> Answer:
        """One request; what is sent is GeoJSON unless told otherwise."""
        return super().call(method, path, body, token=token, **{"content_type": GEOJSON} | headers)

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
    with served(app) as port:
        yield Client(port, token), app.state.places


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """The service as its supervisor would start it, ready."""
    token = run_path / "cdn-geospatial.token"
    with ready(run_path, "services.geospatial", lambda port: Client(port, token), **env) as (client, service):
        yield client, service.process
