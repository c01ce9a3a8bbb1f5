"""OGC API Features, as its own clients see it, and as its text has it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import openapi_spec_validator
import pyogrio.raw
import pytest
from owslib.ogcapi.features import Features

from services.geospatial.limits import Limits
from tests.geospatial.support import SQUARE, TRIANGLE, Client, airports, collection, feature, point, process, serving
from tests.support import short_dir, until

AIRPORTS = airports()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a process with 28,000 airports and a few shapes; GDAL keeps the GIL while it asks, so it is another one."""
    with short_dir() as path, process(path) as (client, _):
        client.load("airports", *AIRPORTS)
        client.load("shapes", feature("square", SQUARE), feature("triangle", TRIANGLE), feature("nowhere", None))
        yield client


def test_gdal_reads_it_unchanged(client: Client) -> None:
    """Its OAPIF driver, through all pages, and with a bbox that the server evaluates."""
    meta, _, geometry, columns = pyogrio.raw.read(f"OAPIF:{client.url}", layer="airports")
    assert len(geometry) == len(AIRPORTS)
    assert {"name", "country"} <= set(meta["fields"])
    bbox = (5.0, 45.0, 11.0, 48.0)
    wanted = {one["properties"]["name"] for one in AIRPORTS if _in(one, bbox)}
    meta, _, geometry, columns = pyogrio.raw.read(f"OAPIF:{client.url}", layer="airports", bbox=bbox)
    names = columns[list(meta["fields"]).index("name")]
    assert set(names) == wanted
    assert len(geometry) == sum(_in(one, bbox) for one in AIRPORTS)


def test_owslib_reads_it_unchanged(client: Client) -> None:
    """Its Features client: what there is, what it conforms to, the API, features by bbox and property."""
    service = Features(client.url + "/")
    assert set(service.feature_collections()) == {"airports", "shapes", "tracks"}
    assert "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core" in service.conformance()["conformsTo"]
    assert service.api()["openapi"].startswith("3.0")
    assert service.collection("airports")["id"] == "airports"
    found = service.collection_items("airports", bbox=[5.0, 45.0, 11.0, 48.0], limit=10_000)
    assert found["numberMatched"] == len(found["features"]) == sum(_in(one, (5, 45, 11, 48)) for one in AIRPORTS)
    swiss = service.collection_items("airports", country="CH", limit=10_000)
    assert len(swiss["features"]) == sum(one["properties"]["country"] == "CH" for one in AIRPORTS)
    assert service.collection_item("airports", "LSZH")["properties"]["name"].startswith("Zurich")


def _in(one: dict[str, Any], bbox: tuple[float, float, float, float]) -> bool:
    lon, lat = one["geometry"]["coordinates"]
    return bool(bbox[0] <= lon <= bbox[2] and bbox[1] <= lat <= bbox[3])


def test_the_openapi_document_is_valid(client: Client) -> None:
    """By a validator that is not ours; each path that it names is there."""
    answer = client.get("/api")
    assert answer.headers["content-type"] == "application/vnd.oai.openapi+json;version=3.0"
    openapi_spec_validator.validate(answer.json)
    for path, methods in answer.json["paths"].items():
        if "get" in methods and "{" not in path and "lon" not in str(methods["get"]["parameters"]):
            assert client.get(path).status == 200, path


def test_the_landing_page_leads_to_all(client: Client) -> None:
    """By absolute links, as of the address that was asked."""
    landing = client.get("/")
    for rel in ("self", "service-desc", "conformance", "data"):
        href = landing.link(rel)
        assert href is not None
        assert href.startswith(client.url)
        assert client.get(href).status == 200
    through = client.call("GET", "/", x_forwarded_prefix="/geo", x_forwarded_host="gate.example")
    assert through.link("data") == "http://gate.example/geo/collections"


def test_pages_are_whole_and_without_repetition(client: Client) -> None:
    """Following next from the first page to the last gives each feature once, in a stable order."""
    found: list[str] = []
    page = client.get("/collections/airports/items?limit=10000&bbox=-30,30,40,75")
    matched = page.json["numberMatched"]
    while True:
        assert page.headers["content-type"] == "application/geo+json"
        assert page.json["numberReturned"] == len(page.ids)
        found += page.ids
        following = page.link("next")
        if following is None:
            break
        page = client.get(following.replace("limit=10000", "limit=3000"))
    assert len(found) == len(set(found)) == matched
    assert set(found) == {one["id"] for one in AIRPORTS if _in(one, (-30, 30, 40, 75))}
    offset = client.get("/collections/airports/items?limit=5&offset=7&bbox=-30,30,40,75")
    assert offset.ids == found[7:12]


def test_a_page_is_stable_while_others_write(tmp_path: Path) -> None:
    """What is deleted and added between two pages moves nothing else."""
    with serving(tmp_path) as (client, _):
        client.load("c", *(point(f"p{n}", n, 0) for n in range(10)))
        first = client.get("/collections/c/items?limit=4")
        assert client.call("DELETE", "/collections/c/items/p1").status == 204
        assert client.call("POST", "/collections/c/items", point("new", 50, 0)).status == 201
        second = client.get(first.link("next") or "")
        third = client.get(second.link("next") or "")
        assert first.ids + second.ids + third.ids == [*(f"p{n}" for n in range(10)), "new"]


def test_a_bbox_over_the_antimeridian(tmp_path: Path) -> None:
    """West over east: both sides and no more; with heights likewise."""
    with serving(tmp_path) as (client, _):
        client.load("c", point("east", 179, 0), point("west", -179, 0), point("far", 0, 0), feature("none", None))
        for box in ("170,-10,-170,10", "170,-10,0,-170,10,9"):
            assert client.get(f"/collections/c/items?bbox={box}").ids == ["east", "west"]
        assert client.get("/collections/c/items?bbox=-180,-90,180,90").ids == ["east", "west", "far"]


def test_a_bbox_is_compared_with_shapes_and_not_with_their_bounds(client: Client) -> None:
    """The corner that a triangle leaves free holds only the square."""
    assert client.get("/collections/shapes/items?bbox=8,8,9,9").ids == ["square"]
    assert client.get("/collections/shapes/items?bbox=1,1,2,2").ids == ["square", "triangle"]
    assert client.get("/collections/shapes/items").ids == ["square", "triangle", "nowhere"]


@pytest.mark.parametrize(
    ("datetime", "ids"),
    [
        ("2026-03-01T00:00:00Z", ["march"]),
        ("2026-03-01", ["march"]),
        ("2026-01-01/2026-02-28", ["january", "span"]),
        ("../2026-01-31T00:00:00Z", ["january", "span"]),
        ("2026-02-20/..", ["march", "span"]),
        ("../..", ["january", "march", "span"]),
        ("2030-01-01T00:00:00%2B01:00", []),
    ],
)
def test_datetime(tmp_path: Path, datetime: str, ids: list[str]) -> None:
    """An instant, an interval, and one with an open end; what has no time is not selected."""
    with serving(tmp_path) as (client, _):
        client.load(
            "c",
            point("january", 0, 0, datetime="2026-01-15T12:00:00Z"),
            point("march", 0, 0, date="2026-03-01"),
            point("span", 0, 0, start="2026-01-31", end="2026-02-27T23:00:00+01:00"),
            point("never", 0, 0, datetime="soon"),
        )
        assert client.get(f"/collections/c/items?datetime={datetime}").ids == ids
        interval = client.get("/collections/c").json["extent"]["temporal"]["interval"]
        assert interval == [["2026-01-15T12:00:00.000Z", "2026-03-01T23:59:59.999Z"]]


def test_times_at_the_ends_of_the_calendar(tmp_path: Path) -> None:
    """For ever, and beyond what RFC 3339 can write in UTC: selected, and the collections are told all the same."""
    with serving(tmp_path) as (client, _):
        client.load(
            "c",
            point("first", 0, 0, datetime="0001-01-01T00:00:00+14:00"),
            point("last", 0, 0, start="2026-01-31", end="9999-12-31"),
            point("beyond", 0, 0, datetime="9999-12-31T23:59:59-14:00"),
        )
        (interval,) = client.get("/collections/c").json["extent"]["temporal"]["interval"]
        assert interval == ["0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"]
        assert client.get("/collections").status == 200
        assert client.get("/collections/c/items?datetime=2027-01-01/..").ids == ["last", "beyond"]
        assert client.get("/collections/c/items?datetime=0001-01-01T00:00:00%2B14:00").ids == ["first"]
        client.call(
            "PUT", "/tracks/ship", {"positions": [{"lon": 1, "lat": 2, "datetime": "0001-01-01T00:00:00+14:00"}]}
        )
        assert client.get("/tracks/ship").json["properties"]["times"] == ["0001-01-01T00:00:00.000Z"]


def test_properties_are_compared_as_they_are_written(tmp_path: Path) -> None:
    """Text, numbers, truths; names with dots and quotes about them reach no other property."""
    with serving(tmp_path) as (client, _):
        client.load(
            "c", point("a", 0, 0, name="x", n=7, ok=True, **{"a.b": "1"}), point("b", 0, 0, name="7", a={"b": "1"})
        )
        for query, ids in {"name=x": ["a"], "n=7": ["a"], "ok=true": ["a"], "a.b=1": ["a"], "name=7": ["b"]}.items():
            assert client.get(f"/collections/c/items?{query}").ids == ids, query
        assert client.get("/collections/c/items?name=%27%20OR%201=1").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/collections/airports/items?nosuch=1",
        "/collections/airports/items?bbox=1,2,3",
        "/collections/airports/items?bbox=0,50,10,40",
        "/collections/airports/items?bbox=0,0,999,1",
        "/collections/airports/items?bbox=nan,0,1,1",
        "/collections/airports/items?datetime=yesterday",
        "/collections/airports/items?datetime=2026-02-01/2026-01-01",
        "/collections/airports/items?limit=0",
        "/collections/airports/items?limit=many",
        "/collections/airports/items?limit=1&limit=2",
        "/collections/airports/items?f=xml",
        "/collections/airports/nearest?lon=1",
        "/collections/airports/nearest?lon=nan&lat=0",
        "/collections/airports/contains?lon=181&lat=0",
        "/collections?nosuch=1",
        "/?nosuch=1",
        "/conformance?nosuch=1",
        "/tracks/a?datetime=x",
    ],
)
def test_what_is_not_in_the_api_is_refused(client: Client, path: str) -> None:
    """400, with the reason."""
    assert client.get(path).error["status"] == 400


@pytest.mark.parametrize("path", ["/collections/no", "/collections/no/items", "/collections/airports/items/no", "/no"])
def test_what_is_not_there(client: Client, path: str) -> None:
    """404, with the reason."""
    assert client.get(path).error["status"] == 404


def test_more_than_the_most_is_the_most(tmp_path: Path) -> None:
    """Requirement 21: a limit that is too large is no error."""
    with serving(tmp_path, Limits(page=3)) as (client, _):
        client.load("c", *(point(f"p{n}", n, 0) for n in range(5)))
        page = client.get("/collections/c/items?limit=1000000")
        assert page.ids == ["p0", "p1", "p2"]
        assert client.get(page.link("next") or "").ids == ["p3", "p4"]


def test_writing(tmp_path: Path) -> None:
    """Add, set, delete, replace; what is answered is there at once."""
    with serving(tmp_path) as (client, _):
        client.load("c", point("a", 1, 1))
        made = client.call("POST", "/collections/c/items", point(None, 2, 2, n=1))
        assert made.status == 201
        assert client.get(made.headers["location"]).json["properties"] == {"n": 1}
        assert client.call("PUT", "/collections/c/items/a", point("a", 3, 3)).status == 204
        assert client.call("PUT", "/collections/c/items/b", point(None, 4, 4)).status == 201
        assert client.get("/collections/c/items?bbox=2.5,2.5,5,5").ids == ["a", "b"]
        assert client.call("DELETE", "/collections/c/items/a").status == 204
        assert client.call("DELETE", "/collections/c/items/a").status == 404
        assert client.get("/collections/c/items?bbox=2.5,2.5,5,5").ids == ["b"]
        assert client.get("/collections/c/items?n=1").json["numberMatched"] == 1
        lines = b'{"type":"Feature","id":"x","geometry":null,"properties":null}\n' * 2
        assert client.call("PUT", "/collections/c", lines).json["features"] == 1
        assert client.get("/collections/c/items").ids == ["x"]
        assert client.call("DELETE", "/collections/c").status == 204
        assert client.get("/collections/c").status == 404


def test_writing_needs_the_token_and_tracks_are_written_by_positions(tmp_path: Path) -> None:
    """401 without it; 409 for the one collection that is not written so."""
    with serving(tmp_path) as (client, _):
        for method, path in {
            "PUT": "/collections/c",
            "POST": "/collections/c/items",
            "DELETE": "/fences/f",
        }.items():
            assert client.call(method, path, {}, token=False).error["status"] == 401
        assert client.call("PUT", "/collections/tracks", collection()).error["status"] == 409
        assert client.call("POST", "/collections/no/items", point("a", 1, 1)).error["status"] == 404


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        ({"type": "Point", "coordinates": [181, 0]}, "longitude 181"),
        ({"type": "Point", "coordinates": [0]}, "length"),
        ({"type": "Point", "coordinates": [0, 1, 2, 3]}, "length"),
        ({"type": "Point", "coordinates": ["0", "1"]}, "float"),
        ({"type": "Blob", "coordinates": [0, 1]}, "Blob"),
        ({"type": "LineString", "coordinates": [[0, 0]]}, "length"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}, "must end there"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}, "length"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 91], [0, 0]]]}, "latitude 91"),
        ({"type": "MultiPoint", "coordinates": [[n / 100, 0] for n in range(2_000)]}, "2000 positions"),
    ],
)
def test_what_is_no_geojson_is_refused_whole(tmp_path: Path, geometry: dict[str, Any], why: str) -> None:
    """422, which feature, and why; nothing of the upload is there."""
    with serving(tmp_path, Limits(vertices=1_000)) as (client, _):
        error = client.call("PUT", "/collections/c", collection(point("a", 1, 1), feature("b", geometry))).error
        assert error["status"] == 422
        assert why in error["what"]
        assert error["value"] == "feature 1"
        assert client.get("/collections/c").status == 404


def test_what_is_hostile_is_refused_and_the_service_lives(tmp_path: Path) -> None:
    """Nesting, size, bytes that are no text."""
    nested: dict[str, Any] = {"type": "Point", "coordinates": [0, 0]}
    for _ in range(20):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    with serving(tmp_path, Limits(upload_bytes=100_000)) as (client, _):
        deep = b'{"type":"Feature","geometry":null,"properties":{"a":' + b"[" * 40_000 + b"]" * 40_000 + b"}}"
        for body, status in (
            (collection(feature("a", nested)), 422),
            (deep, 422),
            (b"[" * 99_000, 422),
            (b"\xff\xfe{", 422),
            (b'{"type":"FeatureCollection","features":7}', 422),
            (b" " * 100_001, 413),
        ):
            assert client.call("PUT", "/collections/c", body).error["status"] == status
        client.load("c", point("a", 1, 1))
        assert client.get("/collections/c/items").ids == ["a"]


@pytest.mark.parametrize("name", ["a\\", "a.b", "$[0]", "é", "\n"])
def test_any_name_of_a_property(tmp_path: Path, name: str) -> None:
    """Can be asked for."""
    with serving(tmp_path) as (client, _):
        client.load("odd", point("a", 1, 1, **{name: "x"}), point("b", 1, 1, **{name: "y"}))
        assert client.get(f"/collections/odd/items?{urlencode({name: 'x'})}").ids == ["a"]


def test_a_title_is_not_lost_to_a_feature(tmp_path: Path) -> None:
    """Both are written in one transaction: what the collection is called now, and one feature more."""
    with serving(tmp_path) as (_, places):
        store = places.store
        store.put_whole("c", store.read(json.dumps(point("a", 1, 1)).encode()), title="before")
        held, go_on = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            held.set()
            go_on.wait(30)

        store.writer.submit(hold)
        assert held.wait(30)
        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(store.put_whole, "c", [], title="after")
            until(lambda: store.writer.waiting() == 1)
            added = pool.submit(store.put, "c", store.read(json.dumps(point("b", 1, 1)).encode()))
            until(lambda: store.writer.waiting() == 2)
            go_on.set()
            assert (whole.result(), added.result()) == (0, (["b"], 1))
        assert store.collection("c").settings.title == "after"
        store.close()
        store.open()
        assert store.collection("c").settings.title == "after"


def test_one_request_does_not_pass_the_limit_of_tracks(tmp_path: Path) -> None:
    """However many objects it is of."""
    with serving(tmp_path, Limits(tracks=2)) as (client, _):
        many = [{"object": name, "lon": 1, "lat": 1} for name in ("a", "b", "c")]
        assert client.call("POST", "/tracks", {"positions": many}).status == 409
        assert client.call("POST", "/tracks", {"positions": many[:2]}).status == 200
