"""KuaiRand-Pure as our records: a real short-video feed of two weeks, read where it lies (Gao et al., CIKM 2022, CC BY-SA 4.0).

One row of its log is an impression and what came of it, so each becomes an impression, a click and a dwell with times of their own:
nothing may be known before it happened. A request is a user's day, known by its first impression. The monthly item statistics
of the data set are not read: they are made of the very clicks that are to be predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from schemas.aggregates import ITEM, USER
from schemas.columnar.table import EVENT_COLUMNS
from schemas.errors import SettingsError
from schemas.features import (
    FEATURES,
    STATICS,
    Registry,
    context_category,
    ctr,
    dwell_avg,
    dwell_per_impression,
    impressions,
    number,
)
from schemas.records import CANDIDATES_COUNT_MAX, DWELL_MS_MAX, Click, Content, Dwell, Event, Impression, RankRequest, User
from schemas.windows import DAY_MS, DAYS_30

LOG_FILES = ("log_standard_20220425_20220430.parquet", "log_standard_20220501_20220508.parquet")
HISTORY_FILE = "user_sequences_20220409_20220424.parquet"
USER_FILE = "user_features_pure.csv"
VIDEO_FILE = "video_features_basic_pure.csv"

#: Days as the data set numbers them: trained on, the one that stops the training early, ranked.
TRAINING_DATES = (20220425, 20220426, 20220427, 20220428, 20220429, 20220430, 20220501, 20220502, 20220503, 20220504)
STOPPING_DATES = (20220505,)
TEST_DATES = (20220506, 20220507, 20220508)
#: What a click on an item is worth must compare across users' days, as in AUC; ranking objectives order only within a day.
OBJECTIVE = "binary:logistic"
#: The two-column feed: there a click opens a video. In the other tabs videos play by themselves, and what the data set calls a click
#: is a play of more than 7 s: known that much later and not at once.
CLICK_TAB = "0"
CLICK_DELAY_MS = 1_000
PLAY_CLICK_DELAY_MS = 7_000
TABS = tuple(str(tab) for tab in range(15))
#: The data set counts days in China's time.
UTC_OFFSET_MS = 8 * 3_600_000
#: Midnight that begins 25 April 2022 there: users and items are published then, when all of their history (9 to 24 April) is past.
PUBLISHED_TS_MS = 1_650_816_000_000

#: What the days before the log say of a user or an item: plays, and the share of them that was long, or liked.
HISTORY_NUMBERS = ("history_count", "history_long_share", "history_like_share")
#: The onehot_feat columns are anonymous codes without order; those kept are the ones that trees split on most.
USER_NUMBERS = (
    "follow_user_num",
    "fans_user_num",
    "friend_user_num",
    "onehot_feat1",
    "onehot_feat2",
    "onehot_feat3",
    "onehot_feat8",
    *HISTORY_NUMBERS,
)
ITEM_NUMBERS = ("video_duration", "server_height", "first_tag", *HISTORY_NUMBERS)

REGISTRY = Registry(
    (
        *FEATURES,
        impressions("impressions_30d", ITEM, DAYS_30),
        dwell_per_impression("dwell_per_impression_30d", ITEM, DAYS_30),
        ctr("user_ctr_30d", USER, DAYS_30),
        impressions("user_impressions_30d", USER, DAYS_30),
        dwell_avg("user_dwell_avg_30d", USER, DAYS_30),
        dwell_per_impression("user_dwell_per_impression_30d", USER, DAYS_30),
        *(number(name, ITEM, f"attributes.{name}") for name in ITEM_NUMBERS),
        *(number(f"user_{name}", USER, f"attributes.{name}") for name in USER_NUMBERS),
        context_category("tab", "tab", TABS),
    ),
    STATICS,
)


@dataclass(frozen=True, slots=True)
class KuaiRand:
    """The data set. shown: one row an impression in order of time, with its request, position and outcome.

    items, users: one row each, with the numbers of ITEM_NUMBERS and USER_NUMBERS, null where unknown.
    """

    shown: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame


class RankingGroup(NamedTuple):
    """A request of a recorded day. labels: whether each candidate was clicked that day."""

    request: RankRequest
    labels: list[bool]


def read(folder: Path) -> KuaiRand:
    """The data set in a folder. Raises SettingsError where a file is missing."""
    names = (*LOG_FILES, HISTORY_FILE, USER_FILE, VIDEO_FILE)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise SettingsError(f"{folder} lacks {', '.join(missing)}. Name the folder that holds the files of KuaiRand-Pure.")
    log = pl.concat([pl.read_parquet(folder / name) for name in LOG_FILES])
    plays = _plays(pl.read_parquet(folder / HISTORY_FILE))
    items = _items(pl.read_csv(folder / VIDEO_FILE)).join(_history(plays, "item_id"), on="item_id", how="left")
    users = _users(pl.read_csv(folder / USER_FILE)).join(_history(plays, "user_id"), on="user_id", how="left")
    return KuaiRand(_shown(log), items, users)


def _shown(log: pl.DataFrame) -> pl.DataFrame:
    """The log without its exact repeats (user, video, millisecond)."""
    return (
        log.unique(["user_id", "video_id", "time_ms"], keep="first", maintain_order=True)
        .sort("time_ms", "user_id", "video_id")
        .select(
            pl.format("{}-{}", "user_id", "date").alias("request_id"),
            pl.col("user_id").cast(pl.String),
            pl.col("video_id").cast(pl.String).alias("item_id"),
            pl.col("time_ms").alias("ts_ms"),
            "date",
            pl.int_range(pl.len(), dtype=pl.Int32).over("user_id", "date").alias("position"),
            pl.col("tab").cast(pl.String),
            pl.col("is_click").cast(pl.Boolean).alias("clicked"),
            pl.col("play_time_ms").clip(0, DWELL_MS_MAX),
        )
    )


def _plays(history: pl.DataFrame) -> pl.DataFrame:
    """Who had played what before the log begins (at most their last 50): user_id, item_id, long, liked."""
    users = history.select("user_id", *(pl.col(name).list.unique() for name in ("watch_seq", "long_watch_seq", "like_seq")))
    plays, long, liked = (
        users.select("user_id", pl.col(name).alias("item_id")).explode("item_id").drop_nulls() for name in users.columns[1:]
    )
    marked = plays.join(long.with_columns(long=True), on=["user_id", "item_id"], how="left")
    marked = marked.join(liked.with_columns(liked=True), on=["user_id", "item_id"], how="left")
    return marked.with_columns(pl.col("user_id", "item_id").cast(pl.String), pl.col("long", "liked").fill_null(value=False))


def _history(plays: pl.DataFrame, entity_id: str) -> pl.DataFrame:
    count, long_share, like_share = HISTORY_NUMBERS
    return plays.group_by(entity_id).agg(
        pl.len().alias(count), pl.col("long").mean().alias(long_share), pl.col("liked").mean().alias(like_share)
    )


def _items(videos: pl.DataFrame) -> pl.DataFrame:
    tags = pl.col("tag").str.split(",")
    uploaded_ms = pl.col("upload_dt").str.to_datetime("%Y-%m-%d", time_unit="ms").cast(pl.Int64)
    return videos.with_columns(
        pl.col("video_id").cast(pl.String).alias("item_id"),
        pl.col("author_id").cast(pl.String),
        (uploaded_ms - UTC_OFFSET_MS).alias("created_at_ms"),
        tags.fill_null([]).alias("topic_tags"),
        tags.list.first().cast(pl.Float64).alias("first_tag"),
    )


def _users(users: pl.DataFrame) -> pl.DataFrame:
    return users.with_columns(
        pl.col("user_id").cast(pl.String), (PUBLISHED_TS_MS - pl.col("register_days") * DAY_MS).alias("created_at_ms")
    )


def contents(data: KuaiRand) -> Iterator[Content]:
    """Every video."""
    known = data.items.select("item_id", "author_id", "created_at_ms", "topic_tags", *ITEM_NUMBERS)
    for item_id, author_id, created_at_ms, topic_tags, *numbers in known.iter_rows():
        yield Content(
            item_id=item_id,
            author_id=author_id,
            created_at_ms=created_at_ms,
            ts_ms=PUBLISHED_TS_MS,
            topic_tags=topic_tags,
            attributes=_attributes(ITEM_NUMBERS, numbers),
        )


def users(data: KuaiRand) -> Iterator[User]:
    """Every user."""
    for user_id, created_at_ms, *numbers in data.users.select("user_id", "created_at_ms", *USER_NUMBERS).iter_rows():
        attributes = _attributes(USER_NUMBERS, numbers)
        yield User(user_id=user_id, created_at_ms=created_at_ms, ts_ms=PUBLISHED_TS_MS, attributes=attributes)


def _attributes(names: Sequence[str], numbers: Sequence[float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, numbers, strict=True) if value is not None}


def acts(data: KuaiRand) -> pl.DataFrame:
    """Every event in order of time: record, the fields of the three records, and tab."""
    shown = data.shown.with_columns(pl.lit(None, pl.Int64).alias("dwell_ms"))
    delay_ms = pl.when(pl.col("tab") == CLICK_TAB).then(CLICK_DELAY_MS).otherwise(PLAY_CLICK_DELAY_MS)
    clicks = shown.filter("clicked").with_columns(pl.col("ts_ms") + delay_ms)
    played_ms = pl.col("play_time_ms")
    dwells = shown.filter(played_ms > 0).with_columns(pl.col("ts_ms") + played_ms, played_ms.alias("dwell_ms"))
    parts = {Impression: shown, Click: clicks, Dwell: dwells}
    marked = [part.with_columns(pl.lit(record.__name__).alias("record")) for record, part in parts.items()]
    return pl.concat(marked).sort("ts_ms", maintain_order=True)


def event_frame(data: KuaiRand) -> pl.DataFrame:
    """Every event as decoding the log would give it: schemas.columnar.table.EVENT_COLUMNS, offsets as in a log of one partition."""
    known = acts(data).with_columns(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("offset"),
        pl.col("ts_ms").alias("timestamp"),
        pl.when(pl.col("record") == Impression.__name__).then("position"),
        pl.lit(None, pl.String).alias("model_version"),
        pl.lit("").alias("tenant"),
    )
    return known.select(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())


def events(data: KuaiRand) -> Iterator[Event]:
    """Every event in order of time."""
    columns = ("record", "request_id", "user_id", "item_id", "ts_ms", "position", "dwell_ms", "tab")
    contexts = {tab: {"tab": tab} for tab in TABS}
    for record, request_id, user_id, item_id, ts_ms, position, dwell_ms, tab in acts(data).select(columns).iter_rows():
        if record == Impression.__name__:
            yield Impression(request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms, position=position, context=contexts[tab])
        elif record == Click.__name__:
            yield Click(request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms)
        else:
            yield Dwell(request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms, dwell_ms=dwell_ms)


def ranking_groups(data: KuaiRand, dates: tuple[int, ...] = TEST_DATES) -> list[RankingGroup]:
    """One request a user's day of `dates`, in order of time: what was shown that day, to be ranked as of its first impression.

    A day of more than CANDIDATES_COUNT_MAX different items is cut to the first shown.
    """
    items = (
        data.shown.filter(pl.col("date").is_in(dates))
        .group_by("request_id", "user_id", "item_id", maintain_order=True)
        .agg(pl.col("ts_ms").min(), pl.col("tab").first(), pl.col("clicked").any())
    )
    groups = (
        items.group_by("request_id", "user_id", maintain_order=True)
        .agg(pl.col("ts_ms").min(), pl.col("tab").first(), *(pl.col(name).head(CANDIDATES_COUNT_MAX) for name in ("item_id", "clicked")))
        .sort("ts_ms", "request_id")
    )
    return [
        RankingGroup(
            RankRequest(
                request_id=request_id,
                user_id=user_id,
                candidate_item_ids=item_ids,
                k=len(item_ids),
                ts_ms=ts_ms,
                context={"tab": tab},
            ),
            labels,
        )
        for request_id, user_id, ts_ms, tab, item_ids, labels in groups.iter_rows()
    ]
