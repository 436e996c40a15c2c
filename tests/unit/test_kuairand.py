"""KuaiRand-Pure becomes our records without telling anything before it happened; on a data set of a few rows in the same files."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replay import kuairand
from replay.rows import contexts_of, rows
from schemas import codec
from schemas.columnar.table import EVENT_COLUMNS, event_table, updates
from schemas.columns import Profile, decode_events
from schemas.errors import SettingsError
from schemas.records import DWELL_MS_MAX, Click, Content, Dwell, Impression, User
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS, StoredRecord, Topic
from schemas.windows import DAY_MS

#: Noon of 6 May 2022 in China, a day that is ranked.
NOON_MS = kuairand.PUBLISHED_TS_MS + 11 * DAY_MS + DAY_MS // 2
#: Rows of the log: user, video, day, time after noon, tab, click, play time.
Shown = tuple[int, int, int, int, int, int, int]
LOG: list[Shown] = [
    (1, 10, 20220506, 5_000, 1, 1, 60_000),
    (1, 11, 20220506, 0, 0, 1, 9_000),
    (1, 12, 20220506, 9_000, 0, 0, 0),
    (1, 11, 20220506, 20_000, 1, 0, 3_000),
    (2, 10, 20220506, 7_000, 4, 0, 2_000),
    (1, 10, 20220507, DAY_MS, 1, 0, 100),
]
Read = Callable[[list[Shown]], kuairand.KuaiRand]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A data set with these rows in its log."""

    def written(log: list[Shown]) -> kuairand.KuaiRand:
        write(tmp_path, log)
        return kuairand.read(tmp_path)

    return written


@pytest.fixture
def data(read: Read) -> kuairand.KuaiRand:
    return read(LOG)


def write(folder: Path, log: list[Shown]) -> None:
    columns = ["user_id", "video_id", "date", "time_ms", "tab", "is_click", "play_time_ms"]
    frame = pl.DataFrame(log, columns, orient="row").with_columns(pl.col("time_ms") + NOON_MS)
    for name in kuairand.LOG_FILES:
        frame.write_parquet(folder / name)
    history = {"user_id": [1], "watch_seq": [[10, 10, 11, 12, 12]], "long_watch_seq": [[11, 11, 12, 99]], "like_seq": [[12]]}
    pl.DataFrame(history).write_parquet(folder / kuairand.HISTORY_FILE)
    numbers = {name: [7.0, None] for name in kuairand.USER_NUMBERS if name not in kuairand.HISTORY_NUMBERS}
    pl.DataFrame({"user_id": [1, 2], "register_days": [30, 0], **numbers}).write_csv(folder / kuairand.USER_FILE)
    videos = {
        "video_id": [10, 11, 12],
        "author_id": [5, 5, 6],
        "upload_dt": ["2022-04-10"] * 3,
        "video_duration": [15_000.0, None, 7_000.0],
        "server_height": [1280.0] * 3,
        "tag": ["20,43", "3", None],
    }
    pl.DataFrame(videos).write_csv(folder / kuairand.VIDEO_FILE)


def profiles(data: kuairand.KuaiRand) -> list[Profile]:
    found: list[tuple[Topic, Content | User]] = [*((CONTENT, item) for item in kuairand.contents(data))]
    found += [(USERS, user) for user in kuairand.users(data)]
    return [Profile(StoredRecord(topic.name, 0, at, value.ts_ms, None, None), value) for at, (topic, value) in enumerate(found)]


def test_repeats_are_dropped(data: kuairand.KuaiRand) -> None:
    """Both files hold the same rows here; each impression is published once."""
    assert sum(isinstance(event, Impression) for event in kuairand.events(data)) == len(LOG)


def test_events_come_in_order_of_time(data: kuairand.KuaiRand) -> None:
    """Clicks and dwells are published when they happened, among other impressions."""
    times_ms = [event.ts_ms for event in kuairand.events(data)]

    assert times_ms == sorted(times_ms)


def test_an_impression_names_its_day_place_and_tab(data: kuairand.KuaiRand) -> None:
    """A request is a user's day; places count up by time, not by the order of the file."""
    found = [event for event in kuairand.events(data) if isinstance(event, Impression) and event.user_id == "1"]

    assert [(event.request_id, event.item_id, event.position, event.context) for event in found] == [
        ("1-20220506", "11", 0, {"tab": "0"}),
        ("1-20220506", "10", 1, {"tab": "1"}),
        ("1-20220506", "12", 2, {"tab": "0"}),
        ("1-20220506", "11", 3, {"tab": "1"}),
        ("1-20220507", "10", 0, {"tab": "1"}),
    ]


def test_a_click_is_known_when_it_can_be(data: kuairand.KuaiRand) -> None:
    """In tab 0 a click opens the video; elsewhere it is a play of 7 s, and known no earlier."""
    found = {event.item_id: event.ts_ms - NOON_MS for event in kuairand.events(data) if isinstance(event, Click)}

    assert found == {"11": 1_000, "10": 5_000 + 7_000}


def test_a_dwell_is_known_when_the_play_ends(data: kuairand.KuaiRand) -> None:
    """Every play is a dwell at its end, also one that was no click; what was not played has none."""
    found = [(event.item_id, event.ts_ms - NOON_MS, event.dwell_ms) for event in kuairand.events(data) if isinstance(event, Dwell)]

    assert sorted(found) == [
        ("10", 9_000, 2_000),
        ("10", 65_000, 60_000),
        ("10", DAY_MS + 100, 100),
        ("11", 9_000, 9_000),
        ("11", 23_000, 3_000),
    ]


def test_a_broken_timer_is_bounded(read: Read) -> None:
    """A play time that would be dead-lettered is cut to the longest dwell there can be."""
    data = read([(1, 10, 20220506, 0, 1, 0, 10 * DWELL_MS_MAX)])

    assert [event.dwell_ms for event in kuairand.events(data) if isinstance(event, Dwell)] == [DWELL_MS_MAX]


def test_the_frame_is_what_decoding_gives(data: kuairand.KuaiRand) -> None:
    """Training offline and training from the log see the same events."""
    frames = []
    for topic in (IMPRESSIONS, CLICKS):
        found = [event for event in kuairand.events(data) if type(event) in topic.records]
        records = [StoredRecord(topic.name, 0, at, event.ts_ms, None, codec.encode(event)) for at, event in enumerate(found)]
        frames.append(event_table(decode_events(topic, records).events))
    decoded, frame = (part.drop("row", "offset").sort(pl.all()) for part in (pl.concat(frames), kuairand.event_frame(data)))

    assert dict(kuairand.event_frame(data).schema) == EVENT_COLUMNS
    assert decoded.equals(frame)


def test_items_carry_what_was_known_before_the_log(data: kuairand.KuaiRand) -> None:
    """Upload day in China's time, tags, and of the earlier plays their count and shares; unknown numbers are left out."""
    first, second, third = kuairand.contents(data)

    assert first.created_at_ms == kuairand.PUBLISHED_TS_MS - 15 * DAY_MS
    assert first.ts_ms == kuairand.PUBLISHED_TS_MS
    assert (first.author_id, first.topic_tags, third.topic_tags) == ("5", ["20", "43"], [])
    assert first.attributes == {
        "video_duration": 15_000.0,
        "server_height": 1280.0,
        "first_tag": 20.0,
        "history_count": 1.0,
        "history_long_share": 0.0,
        "history_like_share": 0.0,
    }
    assert "video_duration" not in second.attributes
    assert (third.attributes["history_long_share"], third.attributes["history_like_share"]) == (1.0, 1.0)


def test_users_carry_what_was_known_before_the_log(data: kuairand.KuaiRand) -> None:
    """Days since registration become a time; repeated plays of one video count once; who has no history has no numbers of it."""
    first, second = kuairand.users(data)

    assert first.created_at_ms == kuairand.PUBLISHED_TS_MS - 30 * DAY_MS
    assert {name: first.attributes[name] for name in kuairand.HISTORY_NUMBERS} == {
        "history_count": 3.0,
        "history_long_share": pytest.approx(2 / 3),
        "history_like_share": pytest.approx(1 / 3),
    }
    assert first.attributes["follow_user_num"] == 7.0
    assert second.attributes == {}


def test_a_ranking_group_is_a_users_day(data: kuairand.KuaiRand) -> None:
    """Distinct items in the order shown, as of the first impression, in its tab; an item is positive if any showing was clicked."""
    groups = {group.request.request_id: group for group in kuairand.ranking_groups(data)}

    first = groups["1-20220506"]
    assert first.request.candidate_item_ids == ["11", "10", "12"]
    assert first.labels == [True, True, False]
    assert (first.request.ts_ms, first.request.k, first.request.context) == (NOON_MS, 3, {"tab": "0"})
    assert set(groups) == {"1-20220506", "2-20220506", "1-20220507"}


def test_a_click_on_any_showing_counts(read: Read) -> None:
    """An item shown twice in a day is one candidate, positive if either was clicked."""
    data = read([(1, 10, 20220506, 0, 1, 0, 100), (1, 10, 20220506, 50_000, 1, 1, 9_000)])

    assert [labels for _, labels in kuairand.ranking_groups(data)] == [[True]]


def test_ranking_groups_come_in_order_of_time(data: kuairand.KuaiRand) -> None:
    """They are asked between the events of their time."""
    times_ms = [group.request.ts_ms for group in kuairand.ranking_groups(data)]

    assert times_ms == sorted(times_ms)


def test_ranking_groups_can_be_of_other_days(data: kuairand.KuaiRand) -> None:
    """Only the days asked for."""
    assert [group.request.request_id for group in kuairand.ranking_groups(data, (20220507,))] == ["1-20220507"]


def test_a_long_day_is_cut(read: Read) -> None:
    """A request holds the first 200 items of the day."""
    data = read([(1, video, 20220506, video, 1, 0, 0) for video in range(250)])

    ((request, labels),) = kuairand.ranking_groups(data)
    assert request.candidate_item_ids == [str(video) for video in range(200)]
    assert len(labels) == request.k == 200


def test_no_outcome_is_among_the_features(read: Read) -> None:
    """Turning every click and play time of a day around leaves the features of its rows as they are."""
    turned = [(*row[:5], 1 - row[5], 60_000 - row[6]) for row in LOG if row[2] == 20220506]
    features = []
    for log in (LOG[:5], turned):
        data = read(log)
        contexts = contexts_of(event for event in kuairand.events(data) if isinstance(event, Impression))
        day = rows(kuairand.event_frame(data), profiles(data), kuairand.REGISTRY, contexts)
        features.append(day.features[[request_id == "1-20220506" for request_id in day.request_ids]])

    assert features[0].tobytes() == features[1].tobytes()


def test_every_event_updates_something(data: kuairand.KuaiRand) -> None:
    """The frame is one that ingest's own definition takes."""
    assert updates(kuairand.event_frame(data))["impressions"].sum() == len(LOG)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A folder that is not the data set says what it lacks."""
    write(tmp_path, LOG)
    (tmp_path / kuairand.USER_FILE).unlink()

    with pytest.raises(SettingsError, match=r"lacks user_features_pure\.csv"):
        kuairand.read(tmp_path)
