"""Each rule of a slate does what it says, and says what it did."""

from typing import Any

import numpy as np
import pytest

from online_store.record import direction, hash_of
from ranker.slate.rules import Cap, ColdStart, Diversity, Exploration, Freshness, Rules, Safety, check, parse, reasons
from ranker.slate.slate import Candidates, Slates, Viewer
from schemas.aggregates import LABELS_LEFT_OUT
from schemas.errors import SettingsError
from schemas.features import REGISTRY, Registry, ctr
from schemas.records import RankRequest
from schemas.windows import HOUR_1, HOUR_MS

NOW_MS = 1_760_000_000_000
NOBODY = Viewer()


def slate(
    rules: Rules,
    scores: list[float],
    facts: dict[str, Any] | None = None,
    k: int = 10,
    context: dict[str, str] | None = None,
    viewer: Viewer = NOBODY,
) -> list[tuple[str, tuple[str, ...]]]:
    """What is returned, best first, and why."""
    names = [f"i{place}" for place in range(len(scores))]
    said = np.array(scores, np.float32)
    request = RankRequest(request_id="r", user_id="u", candidate_item_ids=names, k=k, ts_ms=NOW_MS, context=context or {})
    candidates = Candidates(names, said, said, {"removed": np.zeros(len(names), np.bool_), **(facts or {})})
    found = Slates.by(rules).slate(candidates, request, viewer)
    return [(names[place], reasons(int(found.touched[place]))) for place in found.order]


def names(found: list[tuple[str, tuple[str, ...]]]) -> list[str]:
    return [name for name, _ in found]


def hashes(*words: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([hash_of(word) if word else 0 for word in words], np.uint64)


def labels(*rows: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.stack([hashes(*row, *([""] * (4 - len(row)))) for row in rows])


def test_the_best_come_first_and_ties_stay_as_asked() -> None:
    """Without rules items are returned by score; a feed's own order is the tie-break."""
    assert names(slate(Rules(), [0.5, 0.7, 0.5, 0.7], k=3)) == ["i1", "i3", "i0"]


def test_what_was_taken_down_makes_room() -> None:
    """A removed item is left out before the k best are taken."""
    assert names(slate(Rules(), [0.1, 0.9, 0.5], {"removed": np.array([False, True, False])}, k=2)) == ["i2", "i0"]


def test_an_author_has_no_more_places_than_the_cap() -> None:
    """The third of an author waits behind the first two places' window, and says so."""
    found = slate(Rules(caps=(Cap(of="author", count=1, window=2),)), [0.9, 0.8, 0.7, 0.6], {"author_id": hashes("ann", "ann", "bob", "")})

    assert found == [("i0", ()), ("i2", ()), ("i1", ("AUTHOR_CAP",)), ("i3", ())]


def test_a_topic_has_no_more_places_in_any_run() -> None:
    """Of any three places one is of a topic, while others are left; where none is, the cap is given up and that is said."""
    rules = Rules(caps=(Cap(of="topic", count=1, window=3, where="any"),))
    found = slate(rules, [0.9, 0.8, 0.7, 0.6], {"topic_tags": labels(("x",), ("x", "y"), ("y",), ())})

    assert found == [("i0", ()), ("i2", ()), ("i3", ()), ("i1", ("TOPIC_CAP", "CAP_RELAXED"))]


def test_topics_are_given_up_before_authors() -> None:
    """Where one cap must be broken, it is the topic's."""
    rules = Rules(caps=(Cap(of="author", count=1, window=3), Cap(of="topic", count=1, window=3)))
    facts = {"author_id": hashes("ann", "ann", "bob"), "topic_tags": labels(("x",), ("y",), ("x",))}

    assert names(slate(rules, [0.9, 0.8, 0.7], facts)) == ["i0", "i2", "i1"]


def test_items_without_author_are_never_capped() -> None:
    """An author that is not known is not one author."""
    assert names(slate(Rules(caps=(Cap(of="author", count=1, window=9),)), [0.9, 0.8], {"author_id": hashes("", "")})) == ["i0", "i1"]


def test_diversity_lifts_what_is_unlike() -> None:
    """The second place goes to the item that is not like the first, though its score is lower."""
    alike, other = direction([1.0, 0.1]), direction([-0.1, 1.0])
    found = slate(Rules(diversity=Diversity(weight=0.6)), [0.9, 0.85, 0.5], {"content_embedding": np.stack([alike, alike, other])})

    assert found == [("i0", ()), ("i2", ("DIVERSITY",)), ("i1", ())]


def test_age_raises_a_score_by_half_after_each_half_life() -> None:
    """A new item gains the boost, one of a half-life half of it, an old one and one without a date nothing."""
    created = NOW_MS - np.array([0, 12, 24 * 300, 0]) * HOUR_MS
    created[3] = 0
    found = slate(Rules(freshness=Freshness(boost=0.5)), [0.5, 0.5, 0.70, 0.61], {"created_at_ms": created})

    assert found == [("i0", ("FRESH",)), ("i2", ()), ("i1", ("FRESH",)), ("i3", ())]


def test_an_item_that_was_hardly_shown_is_drawn_to_the_prior() -> None:
    """Full weight without impressions, none from the limit on."""
    rules = Rules(cold_start=ColdStart(prior=0.8, weight=0.5))
    found = slate(rules, [0.2, 0.2, 0.4], {"impressions": np.array([0, 1_000, 1_000])})

    assert found == [("i0", ("COLD_START",)), ("i2", ()), ("i1", ())]


def test_what_was_seen_comes_last() -> None:
    """An item that the request says was seen is behind all others, and is still there when nothing else is."""
    found = slate(Rules(), [0.9, 0.8, 0.7], context={"seen_item_ids": "i0,i1"})

    assert found == [("i2", ()), ("i0", ("SEEN",)), ("i1", ("SEEN",))]


def test_blocked_authors_are_never_returned() -> None:
    """Neither those that the rules name, nor those that the request does."""
    found = slate(
        Rules(blocked_authors=("spam",)),
        [0.9, 0.8, 0.7],
        {"author_id": hashes("spam", "ann", "bob")},
        context={"blocked_author_ids": "ann"},
    )

    assert names(found) == ["i2"]


@pytest.mark.parametrize(
    ("context", "viewer", "expected"),
    [
        ({}, NOBODY, ["i0", "i2", "i3"]),
        ({"market": "DE"}, NOBODY, ["i2", "i3"]),
        ({}, Viewer(market=hash_of("DE")), ["i2", "i3"]),
        ({"market": "FR"}, Viewer(market=hash_of("DE")), ["i0", "i2", "i3"]),
        ({}, Viewer(is_personalized=False), ["i0", "i3"]),
    ],
)
def test_labels_are_kept_from_markets_and_from_people_without_consent(context: dict[str, str], viewer: Viewer, expected: list[str]) -> None:
    """What no market shows, what one does not, what needs consent; the request's own market comes before the user's region."""
    rules = Rules(safety=Safety(labels={"*": ("nsfw",), "DE": ("weapons",)}, without_consent=("sensitive",)))
    said = {"safety_labels": labels(("weapons",), ("nsfw", "ok"), ("sensitive",), ())}

    assert names(slate(rules, [0.9, 0.8, 0.7, 0.6], said, context=context, viewer=viewer)) == expected


def test_more_labels_than_are_kept_are_taken_for_the_worst() -> None:
    """An item whose labels did not all fit may have the unwanted one: it is not shown."""
    many = np.array([[1, 2, 3, LABELS_LEFT_OUT], [1, 2, 3, 4]], np.uint64)

    assert names(slate(Rules(safety=Safety(labels={"*": ("nsfw",)})), [0.9, 0.8], {"safety_labels": many})) == ["i1"]


def test_who_is_not_personalized_is_told() -> None:
    """Every item of such a slate says that it was scored without what is known of the person."""
    assert slate(Rules(), [0.9], viewer=Viewer(is_personalized=False)) == [("i0", ("UNPERSONALIZED",))]


def test_exploration_says_who_was_drawn() -> None:
    """With epsilon 1 the places are drawn; whoever is not the best is EXPLORED."""
    found = slate(Rules(exploration=Exploration(epsilon=1.0)), [float(9 - place) for place in range(10)])

    assert sorted(names(found)) == sorted(f"i{place}" for place in range(10))
    assert ("EXPLORED",) in [why for _, why in found]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"caps": [{"of": "publisher", "count": 1, "window": 2}]}', "publisher"),
        ('{"caps": [{"of": "author", "count": 0, "window": 2}]}', "count"),
        ('{"divercity": {"weight": 1}}', "divercity"),
        ('{"exploration": {"epsilon": 1.5}}', "epsilon"),
        ("[]", "object"),
        ("{", "truncated"),
    ],
)
def test_a_wrong_rule_is_named(text: str, named: str) -> None:
    """A slip of the pen is told with the field at fault."""
    with pytest.raises(ValueError, match="rules") as raised:
        parse(text)

    assert named in str(raised.value)


def test_rules_that_look_at_what_is_not_kept_are_refused() -> None:
    """A registry whose records keep no embeddings cannot serve a diversity rule."""
    bare = Registry((ctr("ctr_1h", "item", HOUR_1),))
    check(Rules(diversity=Diversity(weight=0.5)), REGISTRY)

    with pytest.raises(SettingsError, match="content_embedding"):
        check(Rules(diversity=Diversity(weight=0.5)), bare)
