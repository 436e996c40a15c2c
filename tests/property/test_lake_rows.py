"""Whatever bytes stand on a topic, each record is one row with those bytes: none stops the sink."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.columnar.lake import columns
from schemas.topics import TOPICS, Headers, StoredRecord, Topic
from streams.lake.rows import rows_of
from tests.property.test_codec import RECORDS
from tests.worlds import NOW_MS, SCHEMA_IDS, WIRES, encoded

HEADERS = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=2).map(tuple)


@st.composite
def values(draw: st.DrawFn, topic: Topic) -> tuple[bytes | None, Headers]:
    """A good record of a topic in any wire form, one that was cut or changed, any bytes, or none."""
    value, headers = encoded(draw(st.one_of(*(RECORDS[record] for record in topic.records))), draw(st.sampled_from(WIRES)))
    place = draw(st.integers(0, len(value)))
    changed = st.sampled_from([value, value[:place], value[:place] + draw(st.binary(min_size=1, max_size=3)) + value[place + 1 :]])
    return draw(st.none() | st.binary(max_size=30) | changed), (*headers, *draw(HEADERS))


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.name)
@given(data=st.data())
def test_every_record_is_a_row_with_its_bytes(topic: Topic, data: st.DataObject) -> None:
    """And with the table's columns, whatever of them it says."""
    found = data.draw(st.lists(values(topic), min_size=1, max_size=5))
    keys = st.none() | st.binary(max_size=8)
    records = [StoredRecord(topic.name, 0, at, NOW_MS, data.draw(keys), value, tuple(headers)) for at, (value, headers) in enumerate(found)]

    rows = rows_of(topic, records, SCHEMA_IDS)

    assert dict(rows.schema) == {name: dtype for name, dtype in columns(topic).items() if name != "day"}
    assert rows.select("offset", "key", "value").rows() == [(record.offset, record.key, record.value) for record in records]
