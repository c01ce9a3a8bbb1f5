"""What is sent in error or in malice: each a clear refusal, and nobody else is disturbed."""

from __future__ import annotations

import http.client
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from services.data_fabric.limits import Limits
from services.data_fabric.reader import may_read
from services.data_fabric.store import Store
from tests.data_fabric.support import Client, as_csv, serving
from tests.support import until

LIMITS = Limits(
    upload_bytes=200_000, insert_bytes=100_000, insert_rows=100, sql_body_bytes=50_000, sql_chars=20_000, params=50,
    field_bytes=100_000, result_bytes=500_000, rows_max=5_000, readers=2, streams=1, waiting=2, sources=20, files=2,
)  # fmt: skip
BOMB = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Store]]:
    base = tmp_path_factory.mktemp("hostile")
    (base / "files").mkdir()
    with serving(base / "state", LIMITS, base / "files") as (client, store):
        client.load("numbers", as_csv([["n", "word"], *[[n, f"w{n}"] for n in range(3_000)]]))
        yield client, store


@pytest.fixture
def client(served: tuple[Client, Store]) -> Client:
    return served[0]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO numbers VALUES (1, 'x')",
        "UPDATE numbers SET n = 0",
        "DELETE FROM numbers",
        "WITH x AS (SELECT 1) DELETE FROM numbers",
        "INSERT INTO numbers SELECT * FROM numbers RETURNING n",
        "DROP TABLE numbers",
        "CREATE TABLE x(a)",
        "CREATE TEMP TABLE x(a)",
        "CREATE VIEW x AS SELECT 1",
        "ATTACH '/etc/passwd' AS x",
        "DETACH main",
        "PRAGMA query_only = 0",
        "PRAGMA table_info(numbers)",
        "SELECT * FROM pragma_database_list",
        "VACUUM",
        "VACUUM INTO '/dev/shm/stolen'",
        "BEGIN IMMEDIATE",
        "SAVEPOINT x",
        "REINDEX",
        "ANALYZE",
        "SELECT load_extension('x')",
        "SELECT * FROM _cdn_sources",
        "SELECT (SELECT group_concat(path) FROM _CDN_sources)",
    ],
)
def test_only_reading_is_allowed(client: Client, sql: str) -> None:
    """Whatever writes, looks about or changes the connection is refused with 403, and has done nothing."""
    assert client.sql(sql).error["status"] == 403
    assert client.sql("SELECT count(*), sum(n) FROM numbers").json["rows"] == [[3_000, 4_498_500]]


def test_the_authorizer_denies_what_it_does_not_know() -> None:
    """An action of a later SQLite is not allowed until somebody allows it."""
    assert may_read(9_999, None, None, None, None) != 0


@pytest.mark.parametrize(
    ("sql", "status", "said"),
    [
        ("", 400, "no SELECT"),
        ("-- nothing", 400, "no SELECT"),
        (";", 400, "no SELECT"),
        ("SELEC 1", 400, "syntax error"),
        ("SELECT 1; SELECT 2", 400, "more than one statement"),
        ("SELECT 1; DROP TABLE numbers", 403, ""),
        ("SELECT missing FROM numbers", 400, "no such column"),
        ("SELECT * FROM none", 400, "no such table"),
        ('SELECT "misspelt" FROM numbers', 400, "no such column"),
        ("SELECT 'a\0b'", 400, "NUL"),
        ("SELECT ?", 400, "parameters"),
        ("SELECT " + "1+" * 5_000 + "1", 400, "too large|overflow"),
        ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, 400, "overflow|too large|deep|Recursion limit"),
        ("SELECT '" + "x" * 30_000 + "'", 413, "so long a statement"),
        ("SELECT " + ",".join("1" * 300), 400, "too many columns"),
        (" UNION ALL ".join(["SELECT 1"] * 500), 400, "too many terms"),
        ("SELECT hex(zeroblob(90000))", 422, "too big"),
        ("SELECT zeroblob(1000000000)", 422, "too big"),
        ("SELECT CAST(x'ff' AS TEXT)", 422, "not UTF-8"),
        ("SELECT abs(-9223372036854775808)", 400, "overflow"),
        ("SELECT json('{')", 400, "malformed"),
    ],
)  # fmt: skip
def test_bad_sql_is_explained(client: Client, sql: str, status: int, said: str) -> None:
    """The status, and SQLite's own words where they are the clearest."""
    refused = client.sql(sql)
    assert refused.status == status, refused.body
    assert re.search(said, refused.error["what"]), refused.body
    assert len(refused.body) < 2_000


@pytest.mark.parametrize(
    "sql",
    [
        BOMB,
        "SELECT count(*) FROM numbers a, numbers b, numbers c WHERE a.n + b.n + c.n = 1",
        "SELECT a.n FROM numbers a, numbers b, numbers c ORDER BY a.word || b.word || c.word",
        "SELECT max(length(replace(hex(zeroblob(40000 + a.n - b.n)), '0', 'x'))) FROM numbers a, numbers b",
    ],
)
def test_what_runs_too_long_is_stopped(client: Client, sql: str) -> None:
    """At its time limit, and others are answered meanwhile."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.sql(sql, timeout_s=0.7)))
    thread.start()
    quick = 0
    while thread.is_alive():
        assert client.sql("SELECT 1").status == 200
        assert client.call("GET", "/sources").status == 200
        quick += 1
    thread.join()
    assert quick > 5
    assert answers[0].error["limit"] == "0.7 s"


def test_a_full_house_is_refused_and_recovers(client: Client) -> None:
    """Two run, two wait, the others are told to try again; then all is as before."""
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.sql(BOMB, timeout_s=0.5).status)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(answers)) == [422, 503]
    assert answers.count(422) >= LIMITS.readers
    until(lambda: client.sql("SELECT 1").status == 200)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"sql": 1}', "Expected `str`"),
        (b'{"params": []}', "missing required field `sql`"),
        (b'{"sql": "SELECT 1", "parms": []}', "unknown field `parms`"),
        (b'{"sql": "SELECT 1", "params": [NaN]}', "malformed"),
        (b'{"sql": "\xff"}', "utf-8"),
        (b'{"sql": "SELECT ?", "params": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deeply|recursion"),
        (b'{"sql": "SELECT ?", "params": [{"a": 1}]}', "cannot bind parameter 1"),
        (b'{"sql": "SELECT ?", "params": [99999999999999999999]}', "beyond 64 bits"),
        (b'{"sql": "SELECT 1", "timeout_s": 1000}', "timeout_s"),
        (b'{"sql": "SELECT 1", "timeout_s": -1}', "timeout_s"),
        (b'{"sql": "SELECT 1", "limit": 0}', "limit"),
        (b'{"sql": "SELECT 1", "limit": 1000000000}', "limit"),
        (b'{"sql": "SELECT :a", "params": {"b": 1}}', "parameters"),
    ],
)
def test_bad_json_is_explained(client: Client, body: bytes, said: str) -> None:
    """What is wrong with it, with 400."""
    refused = client.call("POST", "/sql", body)
    assert refused.status == 400
    assert re.search(said, refused.error["what"].lower() if said == "utf-8" else refused.error["what"]), refused.body


def test_large_bodies_are_refused(client: Client) -> None:
    """By what they say of themselves, and by what comes; the server takes no more than its limit of either."""
    assert client.call("POST", "/sql", b" " * 60_000).error["limit"] == "50000 bytes"
    assert client.call("POST", "/tables/numbers/rows", b" " * 110_000).error["status"] == 413
    assert client.call("POST", "/tables/numbers/rows", {"rows": [[1, "x"]] * 101}).error["limit"] == "100 rows"
    for declare in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        connection.putrequest("POST", "/sources/large?kind=csv")
        if declare:
            connection.putheader("Content-Length", str(10**12))
            connection.endheaders()
        else:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            line = b"x" * 60_000
            for _ in range(4):
                connection.send(b"%x\r\n%s\r\n" % (len(line), line))
        assert connection.getresponse().status == 413
        connection.close()
    assert client.call("GET", "/sources/large").status == 404


def test_an_upload_that_ends_early_leaves_nothing(served: tuple[Client, Store]) -> None:
    """The client goes away in the middle."""
    client, store = served
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.putrequest("POST", "/sources/half?kind=csv")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"a,b\n1,2\n")
    until(lambda: list(store.spool.iterdir()), what="the upload has begun")
    connection.close()
    until(lambda: not list(store.spool.iterdir()), what="its file is gone")
    assert client.call("GET", "/sources/half").status == 404


def test_results_are_bounded(client: Client) -> None:
    """By rows in a stream that the client has not limited itself, by bytes in JSON."""
    large = client.sql("SELECT word, hex(zeroblob(1000)) FROM numbers", limit=3_000).json
    assert large["truncated_by"] == "500000 bytes"
    assert 0 < large["row_count"] < 3_000
    assert large["row_count"] == len(large["rows"])
    query = {"sql": "SELECT a.n FROM numbers a, numbers b"}
    with pytest.raises(http.client.IncompleteRead):
        client.call("POST", "/sql?format=csv", query)
    limited = client.call("POST", "/sql?format=csv", query | {"limit": 4_000})
    assert len(limited.body.splitlines()) == 4_001


def test_a_client_that_leaves_frees_its_reader(client: Client) -> None:
    """In the middle of a stream."""
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        connection.request(
            "POST", "/sql?format=csv", b'{"sql": "SELECT a.*, hex(zeroblob(4000)) FROM numbers a", "timeout_s": 30}'
        )
        connection.getresponse().read(100)
        connection.close()
        until(lambda: client.call("POST", "/sql?format=csv", {"sql": "SELECT 1 AS a"}).status == 200)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../state/fabric.db", 403), ("/etc/passwd", 403), ("..", 403), ("", 403), (".", 403), ("none.db", 404),
        ("a\0b", 403), ("link.db", 403), ("text.db", 422), ("pipe", 403), ("empty?mode=rwc", 404), ("x" * 5_000, 404),
    ],
)  # fmt: skip
def test_no_file_outside_the_directory_is_attached(served: tuple[Client, Store], path: str, status: int) -> None:
    """By path, by link, or what is no database file at all; nothing is opened that might block."""
    client, store = served
    text, link, pipe = (store.files / name for name in ("text.db", "link.db", "pipe"))
    text.write_text("this is not a database, but it is long enough to have a header" * 10)
    if not link.is_symlink():
        link.symlink_to(store.path)
        os.mkfifo(pipe)
    assert client.call("POST", "/sources/stolen", {"path": path}).error["status"] == status
    assert client.call("GET", "/sources/stolen").status == 404


def test_a_hostile_database_file_cannot_do_more(served: tuple[Client, Store]) -> None:
    """A view in it that calls what it must not, or runs for ever, fails like any query; one too many is refused."""
    client, store = served
    for name in ("one", "two", "three"):
        with sqlite3.connect(store.files / f"{name}.db") as database:
            database.execute("CREATE VIEW bad AS SELECT load_extension('x')")
            database.execute(f"CREATE VIEW endless AS {BOMB}")
        database.close()
    assert client.call("POST", "/sources/one", {"path": "one.db"}).status == 201
    assert client.call("POST", "/sources/two", {"path": "two.db"}).status == 201
    assert client.call("POST", "/sources/three", {"path": "three.db"}).error["limit"] == "2 files"
    assert client.sql("SELECT * FROM one.bad").status in (400, 403)
    assert client.sql("SELECT * FROM one.endless", timeout_s=0.3).error["limit"] == "0.3 s"
    (store.files / "one.db").unlink()
    assert client.sql("SELECT sum(n) FROM numbers").status == 200
    assert client.call("DELETE", "/sources/one").status == 204
    assert client.call("DELETE", "/sources/two").status == 204


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/sources/main", "csv", 400), ("/sources/cdn_auto_x", "csv", 400), ("/sources/a%22b", "csv", 400),
        ("/sources/ok", "xml", 415), ("/sources/ok", "", 415), ("/sources/" + "x" * 1000, "csv", 400),
    ],
)  # fmt: skip
def test_bad_sources_are_refused_before_their_body_is_read(client: Client, path: str, kind: str, status: int) -> None:
    """By name and by kind."""
    assert client.call("POST", f"{path}?kind={kind}", b"a\n1\n").error["status"] == status


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=99999999", "after=x", "after=" + "9" * 30, "limit=" + "9" * 5000]
)
def test_bad_pages_are_refused(client: Client, query: str) -> None:
    """Numbers only, within their limits."""
    assert client.call("GET", f"/tables/numbers/rows?{query}").error["status"] == 400
