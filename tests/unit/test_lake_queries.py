"""What docs/lake.md shows runs as it stands, in DuckDB and in Polars, with one answer."""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pytest

from schemas.records import DeadLetter, RankedItem, RankResponse, Record
from schemas.topics import TOPICS, StoredRecord
from streams.lake.table import LakePlace, Table
from streams.lake.upkeep import keep
from tests.lakes import TODAY, sink
from tests.worlds import NOW_MS, click, content, dwell, impression, stored, topic_of

PAGE = (Path(__file__).parents[2] / "docs" / "lake.md").read_text()
PRELUDE = re.search(r"## Reading it.*?```python\n(.*?)```", PAGE, re.DOTALL)


class Query(NamedTuple):
    """A question of the page, what it is in SQL, and what in Polars."""

    question: str
    sql: str
    polars: str


BLOCKS = r"```sql\n(.*?)```\n```python\n(.*?)```"
QUERIES = [
    Query(*found)
    for found in re.findall(
        r"(?:### |## What happens at a )([^\n]*)\n(?:(?!\n##).)*?```sql\n(.*?)```\n```python\n(.*?)```", PAGE, re.DOTALL
    )
]
SCORES = {"model_version": "m1", "feature_version": "f", "generation": "g1", "arm": "", "user_id": "u1"}


def answer(number: int, latency_ms: float, degraded: str) -> RankResponse:
    """A rank response of one item."""
    items = [RankedItem(item_id="i1", score=1.0)]
    return RankResponse(request_id=f"r{number}", ranked_items=items, latency_ms=latency_ms, degraded=degraded, ts_ms=NOW_MS, **SCORES)


def letter(offset: int, reason: str) -> DeadLetter:
    """A dead letter of a click."""
    return DeadLetter(topic="clicks", partition=0, offset=offset, reason=reason, detail=f"detail {offset}", value=b"x")


#: Two pages of three items by two models, a repeat, a click and a dwell; answers, letters, and what is known of items.
WORLD: list[Record] = [
    *(
        impression(f"u{page}", f"i{place}", request_id=f"r{page}", position=place, model_version=f"m{page}", ts_ms=NOW_MS + page)
        for page in (1, 2)
        for place in range(3)
    ),
    impression("u1", "i0", request_id="r1", position=0, model_version="m1", ts_ms=NOW_MS + 1),
    click("u1", "i1", request_id="r1", ts_ms=NOW_MS + 5),
    dwell("u1", "i1", request_id="r1", ts_ms=NOW_MS + 6),
    *(answer(number, float(number), "NONE" if number % 3 else "STALE") for number in range(10)),
    letter(1, "MALFORMED"),
    letter(1, "MALFORMED"),
    letter(2, "MALFORMED"),
    letter(2, "REDRIVEN"),
    content("i0", author_id="old", ts_ms=NOW_MS - 5),
    content("i0", author_id="new", language="de"),
]
#: What the first columns of each answer are, by a word of its question.
ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "model": [
        (f"m{page}", place, 1, int((page, place) == (1, 1)), float((page, place) == (1, 1))) for page in (1, 2) for place in range(3)
    ],
    "person": [*([(NOW_MS + 1, "Impression")] * 4), (NOW_MS + 5, "Click"), (NOW_MS + 6, "Dwell")],
    "answers": [(date(2025, 10, 9), "NONE", 6, 4.5, 7.95), (date(2025, 10, 9), "STALE", 4, 4.5, 8.91)],
    "refused": [(date(2025, 10, 9), "clicks", "MALFORMED", 2, "detail 1")],
    "items": [("i0", 2, "new", "de"), ("i2", 2, None, None)],
    "crash": [(0, True, True)],
}


@pytest.fixture(params=QUERIES, ids=[query.question for query in QUERIES])
def query(request: pytest.FixtureRequest) -> Query:
    """Each of the page's."""
    found: Query = request.param
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page begins with, over a lake of WORLD, as the sink and its upkeep leave it."""
    folder = tmp_path_factory.mktemp("lake")
    for name, topic in TOPICS.items():
        Table(LakePlace(str(folder)), topic, 1)
        records = [stored(record, timestamp=NOW_MS) for record in WORLD if topic_of(record) is topic]
        bad = StoredRecord(name, 0, len(records), NOW_MS, b"u1", b"\xff")
        sink(folder, topic, [*(record._replace(offset=offset) for offset, record in enumerate(records)), bad])
        keep(LakePlace(str(folder)), topic, TODAY)
    assert PRELUDE
    names: dict[str, Any] = {}
    exec(PRELUDE[1].replace(".state/lake", str(folder)), names)  # noqa: S102  # it is what the page says
    return names


def test_the_page_has_its_queries() -> None:
    """Five questions, and the proof of every offset."""
    assert [next(word for word in ANSWERS if word in query.question) for query in QUERIES] == [*ANSWERS]


def test_a_query_has_its_answer_in_duckdb(query: Query, shown: dict[str, Any]) -> None:
    """As one would count by hand."""
    wanted = next(rows for word, rows in ANSWERS.items() if word in query.question)
    db: duckdb.DuckDBPyConnection = shown["db"]

    found = [row[: len(wanted[0])] for row in db.sql(query.sql).fetchall()]

    assert near(found) == near(wanted)


def test_polars_says_the_same(query: Query, shown: dict[str, Any]) -> None:
    """The last expression of its block, collected."""
    *statements, last = re.split(r"\n(?=\()", "\n" + query.polars.strip())
    exec("\n".join(statements), shown)  # noqa: S102  # it is what the page says
    found: pl.LazyFrame = eval(last, shown)  # noqa: S307  # as above

    assert near(found.collect().rows()) == near(shown["db"].sql(query.sql).fetchall())


def near(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows whose floats need not be the same to the last bit."""
    return [[round(part, 9) if isinstance(part, float) else part for part in row] for row in rows]
