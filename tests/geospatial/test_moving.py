"""Nearest, point in polygon, tracks and fences, over HTTP and WebSocket."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bus.messages import Fence
from services.geospatial.limits import Limits
from services.geospatial.sphere import RADIUS_M
from tests.geospatial.support import SQUARE, TRIANGLE, airports, feature, point, serving


def metres(lon: float, lat: float, lon2: float, lat2: float) -> float:
    """By the spherical law of cosines, which the service does not use."""
    a, b = math.radians(lat), math.radians(lat2)
    turn = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(math.radians(lon2 - lon))
    return RADIUS_M * math.acos(min(1.0, turn))


def test_nearest_is_by_great_circle(tmp_path: Path) -> None:
    """Everywhere, at the poles and over the antimeridian too, the same as by looking at each of 28,000."""
    known = airports()
    drawn = random.Random(3)
    places = [(179.99, 0.0), (-180.0, 52.0), (10.0, 90.0), (0.0, -90.0)]
    places += [(drawn.uniform(-180, 180), drawn.uniform(-90, 90)) for _ in range(30)]
    with serving(tmp_path) as (client, places_):
        client.load("airports", *known)
        for kind in ("scan", "tree", "rtree"):
            places_.store.collection("airports").layer.use(kind)
            for lon, lat in places:
                distances = sorted(metres(lon, lat, *one["geometry"]["coordinates"]) for one in known)
                found = client.get(f"/collections/airports/nearest?lon={lon}&lat={lat}&k=5").json["features"]
                assert [one["distance_m"] for one in found] == pytest.approx(distances[:5], abs=1.0)
        assert client.get("/collections/airports/nearest?lon=-140&lat=-40&within_m=1000").ids == []


def test_nearest_of_shapes(tmp_path: Path) -> None:
    """Nought inside; outside as far as the border."""
    with serving(tmp_path) as (client, _):
        client.load("c", feature("square", SQUARE), point("far", 30, 0))
        assert client.get("/collections/c/nearest?lon=5&lat=5&k=1").json["features"][0]["distance_m"] == 0.0
        (found,) = client.get("/collections/c/nearest?lon=12&lat=5").json["features"]
        assert found["id"] == "square"
        assert found["distance_m"] == pytest.approx(metres(12, 5, 10, 5), rel=0.01)


def test_point_in_polygon(tmp_path: Path) -> None:
    """Holes are outside, borders inside."""
    ring = [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
    holed = {"type": "Polygon", "coordinates": [*SQUARE["coordinates"], ring]}
    with serving(tmp_path) as (client, _):
        client.load("c", feature("triangle", TRIANGLE), feature("holed", holed), point("p", 1.5, 1.5))
        assert client.get("/collections/c/contains?lon=1.5&lat=1.5").ids == ["triangle"]
        assert client.get("/collections/c/contains?lon=8&lat=8").ids == ["holed"]
        assert client.get("/collections/c/contains?lon=10&lat=5").ids == ["holed"]
        assert client.get("/collections/c/contains?lon=11&lat=5").ids == []


def test_a_track(tmp_path: Path) -> None:
    """Its newest position is a feature, its path a line; what comes late changes nothing and is counted."""
    with serving(tmp_path) as (client, _):
        positions = [{"lon": n, "lat": 0, "datetime": f"2026-01-0{n}T00:00:00Z"} for n in (3, 1, 2)]
        moved = client.call("PUT", "/tracks/ship", {"positions": positions}).json
        assert moved == {"accepted": 3, "ignored": 0, "crossings": 0}
        late = {"positions": [{"lon": 9, "lat": 9, "datetime": "2026-01-02T12:00:00Z"}]}
        assert client.call("PUT", "/tracks/ship", late).json["ignored"] == 1
        (now,) = client.get("/collections/tracks/items?bbox=2.5,-1,3.5,1").json["features"]
        assert now["id"] == "ship"
        assert now["geometry"]["coordinates"] == [3, 0]
        path = client.get("/tracks/ship?datetime=2026-01-02/..").json
        assert path["geometry"] == {"type": "LineString", "coordinates": [[2, 0], [3, 0]]}
        assert path["properties"]["times"] == ["2026-01-02T00:00:00.000Z", "2026-01-03T00:00:00.000Z"]
        assert client.call("DELETE", "/tracks/ship").status == 204
        assert client.get("/tracks/ship").error["status"] == 404
        assert client.get("/collections/tracks/items").ids == []


def test_bad_positions_are_refused_whole(tmp_path: Path) -> None:
    """None of a request with one of them is kept."""
    with serving(tmp_path, Limits(positions=3)) as (client, _):
        good = {"object": "a", "lon": 1, "lat": 1}
        for bad, status in (
            ({**good, "lat": 91}, 400),
            ({**good, "datetime": "soon"}, 400),
            ({**good, "datetime": "2999-01-01T00:00:00Z"}, 422),
            ({**good, "object": "a/b"}, 400),
            ({**good, "height": 1}, 400),
        ):
            assert client.call("POST", "/tracks", {"positions": [good, bad]}).error["status"] == status
        assert client.call("POST", "/tracks", {"positions": [good] * 4}).error["status"] == 413
        assert client.get("/collections/tracks/items").ids == []


def test_fences_are_told_of(tmp_path: Path) -> None:
    """Enter and exit: by WebSocket, on the bus, and to be read afterwards; by who is missing some, from there."""
    told: list[tuple[str, str, str]] = []
    with serving(tmp_path) as (client, places):

        def emit(facts: Fence, text: str, **_: object) -> str:
            told.append((facts.object, facts.fence, facts.crossing))
            return ""

        places.emit = emit
        assert client.call("PUT", "/fences/port", SQUARE).status == 201
        assert client.call("PUT", "/fences/zone", feature(None, TRIANGLE, colour="red")).status == 201
        url = f"ws://127.0.0.1:{client.port}/ws/stream"
        with connect(url) as all_of_them, connect(f"{url}?fence=zone") as of_zone:
            client.at("ship", (20, 20), (8, 8), (1, 1), (2, 1), (20, 20))
            heard = [json.loads(all_of_them.recv(timeout=30)) for _ in range(4)]
            wanted = [("port", "enter"), ("zone", "enter"), ("port", "exit"), ("zone", "exit")]
            assert [(one["fence"], one["crossing"]) for one in heard] == wanted
            assert told == [("ship", *one) for one in wanted]
            zone = [json.loads(of_zone.recv(timeout=30)) for _ in range(2)]
            assert [(one["fence"], one["crossing"]) for one in zone] == [wanted[1], wanted[3]]
        with connect(f"{url}?after={heard[1]['number']}") as later:
            assert [json.loads(later.recv(timeout=30)) for _ in range(2)] == heard[2:]
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"{url}?after=%C2%B2")  # a digit, and no number
        assert client.get("/crossings?fence=zone").json["crossings"] == zone


def test_setting_and_taking_away_a_fence_crosses_nothing(tmp_path: Path) -> None:
    """Who is inside of a new one is known to be, and leaves it."""
    with serving(tmp_path) as (client, _):
        client.at("ship", (5, 5))
        client.call("PUT", "/fences/port", SQUARE)
        assert client.get("/crossings").json["crossings"] == []
        assert client.at("ship", (6, 6))["crossings"] == 0
        assert client.at("ship", (20, 6))["crossings"] == 1
        client.at("ship", (5, 5))
        assert client.call("DELETE", "/fences/port").status == 204
        assert client.at("ship", (20, 6))["crossings"] == 0
        assert client.get("/fences").ids == []
        assert client.call("PUT", "/fences/line", point(None, 1, 1)).error["status"] == 422
