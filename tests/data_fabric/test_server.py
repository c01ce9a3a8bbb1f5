"""The interface over real HTTP: sources, rows, SQL, formats, pages."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import threading
from collections.abc import Iterator

import pytest

from services.data_fabric.limits import Limits
from services.data_fabric.store import Store
from tests.data_fabric.support import AIRPORTS, TOP_20, Client, as_csv, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Store]]:
    base = tmp_path_factory.mktemp("fabric")
    files = base / "files"
    files.mkdir()
    with sqlite3.connect(files / "old.db") as database:
        database.execute("CREATE TABLE runways(icao TEXT, length INTEGER)")
        database.executemany("INSERT INTO runways VALUES (?, ?)", [("EDDF", 4000), ("KLAX", 3939)])
        database.execute("CREATE TABLE keyed(k TEXT PRIMARY KEY, v) WITHOUT ROWID")
    database.close()
    with serving(base / "state", files=files) as (client, store):
        assert client.load("airports", AIRPORTS.read_bytes()).status == 201
        yield client, store


@pytest.fixture
def client(served: tuple[Client, Store]) -> Client:
    return served[0]


def test_a_csv_becomes_a_typed_table(client: Client) -> None:
    """Types by all its values; the description says them."""
    (table,) = client.call("GET", "/sources/airports").json["tables"]
    types = {column["name"]: column["type"] for column in table["columns"]}
    assert (types["icao"], types["elevation"], types["lat"]) == ("TEXT", "REAL", "REAL")
    assert table["rows"] == 28_298
    assert "airports" in [source["name"] for source in client.call("GET", "/sources").json["sources"]]


def test_sql_with_parameters(client: Client) -> None:
    """By position and by name, the same rows."""
    by_place = client.sql(TOP_20, ["DE"]).json
    by_name = client.sql(TOP_20.replace("?", ":country"), {"country": "DE"}).json
    assert by_place["rows"] == by_name["rows"]
    assert by_place["row_count"] == 20
    assert by_place["columns"] == ["icao", "name", "city", "elevation"]
    assert [row[3] for row in by_place["rows"]] == sorted((row[3] for row in by_place["rows"]), reverse=True)


def test_rows_are_capped_and_it_says_so(client: Client) -> None:
    """truncated is true exactly if there were more."""
    some = client.sql("SELECT icao FROM airports", limit=7).json
    assert (some["row_count"], some["truncated"], some["truncated_by"]) == (7, True, "7 rows")
    whole = client.sql("SELECT icao FROM airports LIMIT 7", limit=7).json
    assert (whole["row_count"], whole["truncated"]) == (7, False)
    assert client.sql("SELECT icao FROM airports").json["row_count"] == Limits().rows_default


def test_values_of_every_kind(client: Client) -> None:
    """Blobs are base64, infinity is null, large integers are exact, names that are the same are told apart."""
    answer = client.sql("SELECT NULL, 1.5, 9007199254740993, 'ü', x'00ff', 9e999, 1 AS a, 2 AS a").json
    assert answer["rows"] == [[None, 1.5, 9007199254740993, "ü", "AP8=", None, 1, 2]]
    assert answer["columns"][-2:] == ["a", "a_2"]
    assert client.sql("SELECT ?, ?, ?", [True, None, -(2**63)]).json["rows"] == [[1, None, -(2**63)]]


def test_formats_by_accept_and_by_name(client: Client) -> None:
    """CSV, NDJSON and JSON carry the same rows."""
    query = {"sql": TOP_20, "params": ["FR"]}
    rows = client.call("POST", "/sql", query).json["rows"]
    text = client.call("POST", "/sql", query, accept="text/csv;q=0.9, application/json;q=0.1")
    assert text.headers["content-type"].startswith("text/csv")
    header, *lines = csv.reader(io.StringIO(text.body.decode(), newline=""))
    assert header == ["icao", "name", "city", "elevation"]
    assert [[*line[:3], float(line[3])] for line in lines] == rows
    objects = client.call("POST", "/sql?format=ndjson", query, accept="text/csv")
    assert objects.headers["content-type"] == "application/x-ndjson"
    assert [list(json.loads(line).values()) for line in objects.body.splitlines()] == rows
    assert client.call("POST", "/sql", query, accept="image/png").error["status"] == 406
    assert client.call("POST", "/sql?format=xml", query).error["value"] == "xml"


def test_a_stream_is_whole(client: Client) -> None:
    """All rows of the table, in many chunks; an empty result has its header."""
    whole = client.call("POST", "/sql?format=ndjson", {"sql": "SELECT icao FROM airports"})
    assert len(whole.body.splitlines()) == client.sql("SELECT count(*) FROM airports").json["rows"][0][0]
    assert client.call("POST", "/sql?format=csv", {"sql": "SELECT 1 AS one WHERE 0"}).body == b"one\r\n"


def test_pages_follow_each_other(client: Client) -> None:
    """Each row once, in order of insertion, also while rows are added; JSON's next is the Link of the others."""
    assert client.load("pages", as_csv([["n"], *[[n] for n in range(25)]])).status == 201
    seen: list[int] = []
    path: str | None = "/tables/pages/rows?limit=10"
    while path:
        page = client.call("GET", path).json
        assert page["columns"] == ["_rowid_", "n"]
        seen += [row[1] for row in page["rows"]]
        if len(seen) == 10:
            assert client.call("POST", "/tables/pages/rows", {"rows": [[25]]}).json["last_rowid"] == 26
        path = page["next"]
    assert seen == list(range(26))
    lines = client.call("GET", "/tables/pages/rows?limit=10&format=csv")
    assert lines.headers["link"] == '</tables/pages/rows?limit=10&format=csv&after=10>; rel="next"'
    assert len(lines.body.splitlines()) == 11
    assert client.call("GET", "/tables/pages/rows?after=1000").json["rows"] == []


def test_inserts(client: Client) -> None:
    """Arrays and objects; what is left out is NULL; a row that does not fit takes the others back with it."""
    assert client.load("things", "name,size\na,1\n").status == 201
    rows = [["b", 2], {"size": 3}, {"name": "d"}]
    assert client.call("POST", "/tables/things/rows", {"rows": rows}).json == {
        "table": "things", "inserted": 3, "last_rowid": 4,
    }  # fmt: skip
    assert client.sql("SELECT * FROM things").json["rows"] == [["a", 1], ["b", 2], [None, 3], ["d", None]]
    for bad, said in [
        ([["x", 1], ["y", "large"]], "cannot insert row 2: cannot store TEXT value in INTEGER column things.size"),
        ([["x", 1], ["y"]], "cannot insert row 2: it has 1 values, the table 2 columns"),
        ([["x", 1], {"colour": 1}], "cannot insert row 2: there is no column 'colour'"),
        ([["x", 2**63]], "cannot insert row 1: integer 9223372036854775808 is beyond 64 bits"),
        ([7], "cannot insert row 1: a row is an array or an object"),
    ]:
        refused = client.call("POST", "/tables/things/rows", {"rows": bad})
        assert refused.status == 422
        assert refused.error["what"].startswith(said)
    assert client.sql("SELECT count(*) FROM things").json["rows"] == [[4]]


def test_inserts_at_once_share_their_commits(served: tuple[Client, Store]) -> None:
    """Forty clients insert together; every row is there, and there were not more commits than inserts."""
    client, store = served
    client.load("many", "n\n0\n")
    before = store.writer.commits
    threads = [
        threading.Thread(target=client.call, args=("POST", "/tables/many/rows", {"rows": [[n]]})) for n in range(1, 41)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.sql("SELECT count(DISTINCT n), sum(n) FROM many").json["rows"] == [[41, 820]]
    assert store.writer.commits - before <= 40


def test_ndjson_and_names_that_need_quotes(client: Client) -> None:
    """Keys with spaces, quotes and keywords are columns like others."""
    assert client.load("odd", '{"select": 1, "a \\"b\\"": "x", "größe": [1]}\n', "ndjson").status == 201
    answer = client.sql('SELECT "select", "a ""b""", größe FROM odd').json
    assert answer["rows"] == [[1, "x", "[1]"]]


def test_put_replaces_and_delete_drops(client: Client) -> None:
    """POST makes what is not there, PUT makes or replaces, DELETE drops."""
    assert client.load("x1", "a\n1\n").status == 201
    assert client.load("X1", "a\n2\n").error["status"] == 409
    assert client.load("x1", "b\nzwei\n", method="PUT").status == 201
    replaced = client.sql("SELECT * FROM x1").json
    assert (replaced["columns"], replaced["rows"]) == (["b"], [["zwei"]])
    assert client.call("DELETE", "/sources/x1").status == 204
    assert client.call("DELETE", "/sources/x1").error["status"] == 404
    assert client.sql("SELECT * FROM x1").error["status"] == 400


def test_a_replaced_table_is_told_with_its_own_columns(client: Client) -> None:
    """Also the first time, by a statement that was prepared for the table before."""
    assert client.load("changing", "name,metres\nZugspitze,2962\n").status == 201
    for _ in range(20):  # every reader has it prepared
        assert client.call("GET", "/tables/changing/rows").json["columns"] == ["_rowid_", "name", "metres"]
    assert client.load("changing", "title\nMont Blanc\n", method="PUT").status == 201
    for _ in range(20):
        answer = client.call("GET", "/tables/changing/rows").json
        assert (answer["columns"], answer["rows"]) == (["_rowid_", "title"], [[1, "Mont Blanc"]])
    assert client.load("changing", "height\n1\n", method="PUT").status == 201
    for _ in range(20):
        answer = client.call("GET", "/tables/changing/rows?after=1").json
        assert (answer["columns"], answer["rows"]) == (["_rowid_", "height"], [])


def test_a_broken_file_leaves_nothing_behind(served: tuple[Client, Store]) -> None:
    """No table, no source, no spooled file; the old one is still there after a broken PUT."""
    client, store = served
    assert client.load("broken", "a,b\n1,2\n3\n").error["what"] == (
        "cannot load line 3: it has 1 fields, the header has 2"
    )
    assert client.call("GET", "/sources/broken").status == 404
    assert client.sql("SELECT count(*) FROM sqlite_schema WHERE name = 'broken'").json["rows"] == [[0]]
    assert client.load("kept", "a\n1\n").status == 201
    assert client.load("kept", '{"a": }', "ndjson", "PUT").error["status"] == 422
    assert client.sql("SELECT * FROM kept").json["rows"] == [[1]]
    assert list(store.spool.iterdir()) == []


def test_a_sqlite_file_is_attached_and_joined(client: Client) -> None:
    """Read-only, across sources; dropping it leaves the file alone."""
    assert client.call("POST", "/sources/old", {"path": "old.db"}).status == 201
    joined = "SELECT a.city, r.length FROM old.runways r JOIN airports a ON a.icao = r.icao ORDER BY 1"
    assert client.sql(joined).json["rows"] == [["Frankfurt am Main", 4000], ["Los Angeles", 3939]]
    tables = client.call("GET", "/sources/old").json["tables"]
    assert [table["name"] for table in tables] == ["old.keyed", "old.runways"]
    assert client.call("GET", "/tables/old.runways/rows?limit=1").json["next"]
    assert client.call("GET", "/tables/old.keyed/rows").error["status"] == 400
    assert client.sql("INSERT INTO old.runways VALUES ('x', 1)").error["status"] == 403
    assert client.call("POST", "/tables/old.runways/rows", {"rows": [["x", 1]]}).error["status"] == 404
    assert client.call("DELETE", "/sources/old").status == 204
    assert client.sql(joined).error["what"] == "cannot run this: no such table: old.runways"


def test_what_is_not_there(client: Client) -> None:
    """Each in the same form."""
    assert client.call("GET", "/nowhere").error["status"] == 404
    assert client.call("DELETE", "/sql").error["status"] == 405
    assert client.call("GET", "/sources/none").error["value"] == "none"
    assert client.call("GET", "/tables/none/rows").error["status"] == 404
    assert client.call("POST", "/tables/none/rows", {"rows": [[1]]}).error["status"] == 404
