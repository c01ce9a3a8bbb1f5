"""Parquet, JSON, GeoJSON and node-link JSON, in and out: written and read by libraries that are not ours."""

from __future__ import annotations

import datetime
import decimal
import io
import json
from collections.abc import Iterator

import networkx
import pyarrow
import pyarrow.parquet
import pytest

from services.data_fabric.limits import Limits
from services.data_fabric.store import Store
from tests.data_fabric.support import Client, serving

NOON = datetime.datetime(2024, 7, 1, 12, 0, 0, 500)
PLACES = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "p1",
            "geometry": {"type": "Point", "coordinates": [10.98, 47.42]},
            "properties": {"name": "Zugspitze", "metres": 2962},
        },
        {
            "type": "Feature",
            "id": "p2",
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]},
            "properties": {"name": "Triangle", "metres": None},
        },
        {"type": "Feature", "id": "p3", "geometry": None, "properties": {"name": "Nowhere", "metres": 0}},
    ],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Store]]:
    with serving(tmp_path_factory.mktemp("fabric")) as (client, store):
        yield client, store


@pytest.fixture
def client(served: tuple[Client, Store]) -> Client:
    return served[0]


def parquet(table: pyarrow.Table, **options: str) -> bytes:
    """The table as Apache's own library writes it."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_a_parquet_becomes_a_typed_table(client: Client, compression: str) -> None:
    """Each type as SQLite can keep it, and nothing of it lost: what no number of SQLite's holds becomes text."""
    table = pyarrow.table(
        {
            "whole": pyarrow.array([1, None], pyarrow.int32()),
            "real": [2.0, float("inf")],
            "text": ["ü", None],
            "bytes": [b"\x00\xff", None],
            "huge": pyarrow.array([2**64 - 1, 1], pyarrow.uint64()),
            "unsigned": pyarrow.array([2**63 - 1, 1], pyarrow.uint64()),
            "local": pyarrow.array([NOON, None], pyarrow.timestamp("us")),
            "zoned": pyarrow.array([NOON, None], pyarrow.timestamp("us", tz="Europe/Berlin")),
            "day": [NOON.date(), None],
            "price": [decimal.Decimal("1.25"), None],
            "exact": [decimal.Decimal("12345678901234567890.01"), None],
            "flag": [True, False],
            "many": [[1, 2], None],
            "one": [{"x": 1}, None],
            'the "odd" one': [1, 2],
            "nothing": pyarrow.nulls(2),
        }
    )
    assert client.load("typed", parquet(table, compression=compression), "parquet", "PUT").status == 201
    answer = client.sql("SELECT * FROM typed").json
    assert answer["columns"] == table.column_names
    first, second = (dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"])
    assert first == {
        "whole": 1, "real": 2.0, "text": "ü", "bytes": "AP8=", "huge": str(2**64 - 1), "unsigned": 2**63 - 1,
        "local": "2024-07-01 12:00:00.0005", "zoned": "2024-07-01T12:00:00.000500Z", "day": "2024-07-01",
        "price": 1.25, "exact": "12345678901234567890.01", "flag": 1, "many": "[1,2]", "one": '{"x":1}',
        'the "odd" one': 1, "nothing": None,
    }  # fmt: skip
    assert (second["whole"], second["real"], second["huge"], second["flag"]) == (None, None, "1", 0)
    (described,) = client.call("GET", "/sources/typed").json["tables"]
    types = {column["name"]: column["type"] for column in described["columns"]}
    assert (types["whole"], types["real"], types["text"], types["huge"]) == ("INTEGER", "REAL", "TEXT", "TEXT")


def test_a_query_across_all_kinds_of_sources(client: Client) -> None:
    """One statement joins what came as Parquet, JSON, CSV and NDJSON; a Parquet without rows has its columns."""
    orders = pyarrow.table({"who": [1, 2, 1], "what": ["a", "b", "b"], "n": [2, 1, 5]})
    assert client.load("orders", parquet(orders), "parquet").status == 201
    assert client.load("none", parquet(orders.slice(0, 0)), "parquet").status == 201
    people = json.dumps([{"id": 1, "name": "Ann"}, {"name": "Ben", "id": 2, "tags": ["x"]}], indent=2)
    assert client.load("people", people, "json").status == 201
    assert client.load("goods", "code,price\na,1.5\nb,2\n").status == 201
    assert client.load("vat", '{"code": "b", "percent": 10}\n', "ndjson").status == 201
    answer = client.sql(
        "SELECT name, sum(n * price * (1 + coalesce(percent, 0) / 100.0)) AS total FROM orders "
        "JOIN people ON people.id = who JOIN goods ON code = what LEFT JOIN vat USING (code) "
        "GROUP BY name ORDER BY name"
    ).json
    assert answer["rows"] == [["Ann", pytest.approx(14.0)], ["Ben", pytest.approx(2.2)]]
    assert client.sql("SELECT count(who) FROM none").json["rows"] == [[0]]
    assert client.call("GET", "/tables/none/rows").json["columns"] == ["_rowid_", "who", "what", "n"]


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("parquet", b"PAR1 this is none PAR1", "cannot load the file as parquet: "),
        ("parquet", b"", "cannot load the file as parquet: "),
        ("parquet", parquet(pyarrow.table({"a": range(1000)}))[:-200] + b"x" * 192 + b"\x10\0\0\0PAR1", "cannot load"),
        ("json", b"[1, 2]", "cannot load row 1: "),
        ("json", b'[{"a": 1}, {"a": ', "cannot load the file as json: it is not an array of objects"),
        ("json", b'{"a": 1}', "cannot load the file as json: it is not an array of objects"),
        ("json", b'[{"a": 1}, {"a": 9223372036854775808}]', "cannot load row 2: integer"),
        ("json", b"[" * 100_000, "cannot load the file as json: it is nested too deeply"),
        ("json", b"[]", "cannot load row 1: the file is empty"),
        ("json", b'[{"a": 1, "A": 2}]', "cannot load row 1: two columns have the same name"),
        ("geojson", b'{"type": "Feature"}', "cannot load the file as geojson: it is not a FeatureCollection"),
        (
            "geojson",
            b'{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":{"type":"Point"}}]}',
            "cannot load the file as geojson: it is not a Feature as feature 1: a Point without its coordinates",
        ),
        ("node-link", b'{"nodes": []}', "cannot load the file as node-link: it has neither edges nor links"),
        ("node-link", b'{"nodes": [{"id": 1}], "edges": [{"source": 1}]}', "cannot load the file as node-link: edge 1"),
    ],
)
def test_what_cannot_be_read_is_refused(client: Client, kind: str, body: bytes, said: str) -> None:
    """With the reason; nothing of it is left, and the next one is taken."""
    refused = client.load("broken", body, kind)
    assert refused.status == 422, refused.body
    assert refused.error["what"].startswith(said), refused.error
    assert "broken" not in [source["name"] for source in client.call("GET", "/sources").json["sources"]]


def test_nothing_of_a_conversion_is_left_on_disk(served: tuple[Client, Store]) -> None:
    """Neither the upload nor its lines, whether it was taken or not."""
    client, store = served
    client.load("good", b'[{"a": 1}]', "json", "PUT")
    client.load("bad", b'{"nodes": [{"id": 1}], "edges": [{"source": 1}]}', "node-link", "PUT")
    assert list(store.spool.iterdir()) == []


def test_a_window_with_nothing_in_it_is_an_empty_table(client: Client) -> None:
    """Not a file that is refused, which would leave there what was in the window before."""
    where = {"type": "Feature", "id": "a", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}
    for features in ([where], []):
        body = json.dumps({"type": "FeatureCollection", "features": features}).encode()
        assert client.load("window", body, "geojson", "PUT").status in (200, 201)
        told = client.call("GET", "/tables/window/rows?format=geojson").json["features"]
        assert [feature["id"] for feature in told] == [feature["id"] for feature in features]
    assert client.call("POST", "/sql", {"sql": "SELECT id, geometry FROM window"}).json["rows"] == []


def test_geojson_comes_back_as_it_was(client: Client) -> None:
    """Ids, geometries and properties; pages follow each other by a link."""
    body = json.dumps(PLACES).encode()
    assert client.call("POST", "/sources/places", body, content_type="application/geo+json").status == 201
    answer = client.call("GET", "/tables/places/rows", accept="application/geo+json")
    assert answer.headers["content-type"] == "application/geo+json"
    collection = answer.json
    for feature in collection["features"]:
        assert feature["properties"].pop("_rowid_")
    assert collection["features"] == PLACES["features"]
    assert (collection["numberReturned"], collection["truncated"]) == (3, False)
    first = client.call("GET", "/tables/places/rows?format=geojson&limit=2").json
    (link,) = first["links"]
    second = client.call("GET", link["href"]).json
    assert [feature["id"] for feature in first["features"] + second["features"]] == ["p1", "p2", "p3"]
    assert "links" not in second


def test_a_feature_that_has_an_id_and_a_property_of_that_name(client: Client) -> None:
    """Both come back."""
    feature = {"type": "Feature", "id": 7, "geometry": None, "properties": {"id": "x"}}
    body = json.dumps({"type": "FeatureCollection", "features": [feature]})
    assert client.load("twice", body, "geojson").status == 201
    query = {"sql": "SELECT * FROM twice"}
    assert client.call("POST", "/sql?format=geojson", query).json["features"] == [feature]


def test_rows_with_longitude_and_latitude_are_points(client: Client) -> None:
    """By their usual names or by those that are given; what is no place is refused."""
    assert client.load("towns", "name,x,y,lon,lat\nA,1,2,10.5,50\nB,3,4,,\n").status == 201
    query = {"sql": "SELECT * FROM towns"}
    usual = client.call("POST", "/sql?format=geojson", query).json["features"]
    assert usual[0] == {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [10.5, 50]},
        "properties": {"name": "A", "x": 1, "y": 2},
    }
    assert usual[1]["geometry"] is None
    named = client.call("POST", "/sql?format=geojson&lon=x&lat=y&id=name", query).json["features"]
    assert [(feature["id"], feature["geometry"]["coordinates"]) for feature in named] == [("A", [1, 2]), ("B", [3, 4])]
    for path, sql, said in [
        ("/sql?format=geojson", "SELECT name FROM towns", "cannot tell where these rows are"),
        ("/sql?format=geojson&geometry=shape", "SELECT name FROM towns", "cannot find the column of geometry="),
        ("/sql?format=geojson&lon=name&lat=y", "SELECT * FROM towns", "cannot take this for longitude and latitude"),
        ("/sql?format=geojson&geometry=name", "SELECT * FROM towns", "cannot take this for a geometry"),
    ]:
        assert client.call("POST", path, {"sql": sql}).error["what"].startswith(said)


def test_a_graph_goes_in_and_out_through_networkx(client: Client) -> None:
    """What networkx writes becomes two tables; what they give is, to networkx, the same graph."""
    graph = networkx.MultiDiGraph()
    graph.add_node("a", colour="red", size=1)
    graph.add_node("b", colour="blue", size=2)
    graph.add_node("c", colour="red", size=3)
    graph.add_edge("a", "b", weight=1.5)
    graph.add_edge("a", "b", weight=2.5)
    graph.add_edge("b", "c", weight=0.5)
    for edges in ("edges", "links"):
        body = json.dumps(networkx.node_link_data(graph, edges=edges))
        assert client.load("links", body, "node-link", "PUT").status == 201
        query = {"sql": "SELECT l.* FROM links l JOIN links_nodes n ON n.id = target WHERE n.colour IS NOT NULL"}
        answer = client.call("POST", "/sql?format=node-link&nodes=links_nodes", query).json
        read = networkx.node_link_graph(answer, edges="edges")
        assert read.graph.pop("truncated") is False
        assert networkx.utils.graphs_equal(read, graph)
        page = client.call("GET", "/tables/links/rows?format=node-link&limit=2").json
        assert [edge["weight"] for edge in page["edges"]] == [1.5, 2.5]
        assert [node["id"] for node in page["nodes"]] == ["a", "b"]
        assert page["graph"]["truncated"]
        assert [edge["target"] for edge in client.call("GET", page["graph"]["next"]).json["edges"]] == ["c"]


def test_any_rows_are_a_graph_by_the_columns_one_names(client: Client) -> None:
    """Where an end is missing there is no edge; columns that are not there are refused."""
    rows = [
        {"origin": "FRA", "goal": "JFK", "km": 6200},
        {"origin": "JFK", "goal": "LAX", "km": 3980},
        {"origin": "FRA"},
    ]
    assert client.load("flights", json.dumps(rows), "json").status == 201
    query = {"sql": "SELECT * FROM flights"}
    graph = client.call("POST", "/sql?format=node-link&source=origin&target=goal", query).json
    assert graph["nodes"] == [{"id": "FRA"}, {"id": "JFK"}, {"id": "LAX"}]
    assert graph["edges"][0] == {"source": "FRA", "target": "JFK", "km": 6200}
    assert len(graph["edges"]) == 2
    for asked in ("", "&source=origin", "&source=origin&target=x"):
        refused = client.call("POST", f"/sql?format=node-link{asked}", query)
        assert refused.error["what"] == "cannot tell from where to where these rows lead"


def test_results_that_are_too_large_end_where_they_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As with JSON: a collection says that it is truncated, its pages go on."""
    with serving(tmp_path_factory.mktemp("small"), Limits(result_bytes=300_000)) as (client, _):
        rows = "".join(f"{n},{n % 90},1,{'x' * 100}\n" for n in range(2_000))
        assert client.load("many", "n,lon,lat,pad\n" + rows).status == 201
        path: str | None = "/tables/many/rows?format=geojson&limit=2000"
        seen = []
        while path:
            page = client.call("GET", path).json
            seen += [feature["properties"]["n"] for feature in page["features"]]
            path = page["links"][0]["href"] if page["truncated"] else None
        assert seen == list(range(2_000))
        assert client.call("POST", "/sql?format=geojson", {"sql": "SELECT * FROM many"}).json["truncated"]
