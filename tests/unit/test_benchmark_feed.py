"""The feed of the benchmarks: what it holds, and that its bytes are those of the codec."""

import numpy as np
import pytest

from benchmarks import feed as feeds
from benchmarks import wire
from schemas import codec

SMALL = feeds.make(5_400, seed=7)
HOT = feeds.make(5_400, seed=7, hot=True)


@pytest.mark.parametrize("feed", [SMALL, HOT], ids=["plain", "hot"])
@pytest.mark.parametrize(("form", "encode"), [(wire.AVRO, codec.encode), (wire.JSON, codec.encode_json)])
def test_bytes_are_those_of_the_codec(feed: feeds.Feed, form: str, encode: wire.Encode) -> None:
    """Every event, in Avro and in JSON."""
    assert wire.values(feed, form) == [encode(wire.event(feed, row)) for row in range(len(feed))]


def test_shares_are_as_stated() -> None:
    """8 % of impressions are clicked, 60 % of clicks have a dwell."""
    clicks = int(SMALL.is_click.sum())
    dwells = int((SMALL.dwell_ms != feeds.NONE).sum())

    assert (len(SMALL), clicks, 230 <= dwells <= 250) == (5_400, 400, True)


def test_a_page_is_ten_items_of_one_user() -> None:
    """Ten impressions share a request, a user and a moment, and show ten items."""
    shown = ~SMALL.is_click
    page = np.unique(np.stack([SMALL.request, SMALL.user, SMALL.ts_ms])[:, shown], axis=1)
    items = np.unique(np.stack([SMALL.request, SMALL.item])[:, shown], axis=1)

    assert (page.shape[1], items.shape[1]) == (500, 5_000)


def test_nothing_is_sent_twice() -> None:
    """In a hot feed neither: what looks like a repeat would be dropped, and the feed with it."""
    sent = np.stack([HOT.request, HOT.item, HOT.is_click], axis=1)

    assert len(np.unique(sent, axis=0)) == len(HOT)


def test_a_hot_item_draws_three_of_ten() -> None:
    """Of the impressions; of the clicks by chance as many."""
    shown = HOT.item[~HOT.is_click]

    assert (shown == 0).mean() == pytest.approx(0.3)


def test_items_are_heavy_tailed() -> None:
    """The first of 100,000 items is drawn more than a hundred times as often as the thousandth."""
    counts = np.bincount(feeds.make(200_000, seed=3).item, minlength=feeds.ITEMS_COUNT)

    assert counts[0] > 100 * counts[900:1_100].mean()


def test_one_seed_is_one_feed() -> None:
    """And another seed is another."""
    again, other = feeds.make(5_400, seed=7), feeds.make(5_400, seed=8)

    assert (wire.values(again) == wire.values(SMALL), wire.values(other) == wire.values(SMALL)) == (True, False)
