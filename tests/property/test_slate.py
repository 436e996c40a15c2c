"""Whatever the rules and the candidates, a slate is an honest order of them."""

from dataclasses import dataclass

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_store.record import direction
from ranker.slate.rules import OUT, Cap, ColdStart, Diversity, Exploration, Freshness, Rules, Touch
from ranker.slate.slate import Candidates, Slate, Slates, Viewer
from schemas.records import RankRequest

NOW_MS = 1_760_000_000_000
SHARES = st.floats(0, 1, width=32)
CAPS = st.builds(
    Cap, of=st.sampled_from(["author", "topic"]), count=st.integers(1, 3), window=st.integers(1, 8), where=st.sampled_from(["first", "any"])
)
RULES = st.builds(
    Rules,
    caps=st.lists(CAPS, max_size=3).map(tuple),
    diversity=st.none() | st.builds(Diversity, weight=SHARES, first=st.integers(1, 12)),
    freshness=st.none() | st.builds(Freshness, boost=st.floats(0.1, 5)),
    cold_start=st.none() | st.builds(ColdStart, prior=SHARES, weight=SHARES),
    exploration=st.none() | st.builds(Exploration, epsilon=SHARES, first=st.integers(1, 12)),
    displacement_max=st.integers(1, 12),
)


@dataclass(frozen=True)
class Case:
    """Candidates of few authors and topics, so that caps are felt."""

    candidates: Candidates
    request: RankRequest
    seen: frozenset[int]


FACTS = ("removed", "author_id", "topic_tags", "impressions", "created_at_ms", "content_embedding")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 24))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    facts = {
        "removed": random.random(count) < 0.1,
        "author_id": random.integers(0, 4, count).astype(np.uint64),
        "topic_tags": random.integers(0, 4, (count, 4)).astype(np.uint64),
        "impressions": random.integers(0, 2_000, count),
        "created_at_ms": NOW_MS - random.integers(0, 100 * 3_600_000, count),
        "content_embedding": np.stack([direction(random.normal(size=8).tolist()) for _ in range(count)]),
    }
    scores = random.integers(0, 6, count).astype(np.float32) / np.float32(8)
    seen = frozenset(np.flatnonzero(random.random(count) < 0.2).tolist()) if draw(st.booleans()) else frozenset()
    names = [f"i{place}" for place in range(count)]
    context = {"seen_item_ids": ",".join(names[place] for place in seen)} if seen else {}
    request = RankRequest(
        request_id=f"r{draw(st.integers(0, 1000))}",
        user_id="u",
        candidate_item_ids=names,
        k=draw(st.integers(1, 30)),
        ts_ms=NOW_MS,
        context=context,
    )
    return Case(Candidates(names, scores, scores, facts), request, seen)


def made(rules: Rules, case: Case) -> Slate:
    return Slates.by(rules).slate(case.candidates, case.request, Viewer())


def all_of(case: Case) -> Case:
    return Case(case.candidates, msgspec.structs.replace(case.request, k=200), case.seen)


def by_score(case: Case) -> list[int]:
    """Who may be returned, in the order of their scores, the seen ones last; ties as asked."""
    removed = case.candidates.facts["removed"]
    return sorted(
        (place for place in range(len(removed)) if not removed[place]),
        key=lambda place: (place in case.seen, -float(case.candidates.order_by[place]), place),
    )


def breaks(cap: Cap, case: Case, above: list[int], candidate: int) -> bool:
    """Whether a candidate breaks a cap behind those above it, in plain words."""
    if cap.where == "first" and len(above) >= cap.window:
        return False
    run = above[max(len(above) - cap.window + 1, 0) :] if cap.where == "any" else above
    if cap.of == "author":
        authors = case.candidates.facts["author_id"]
        return bool(authors[candidate]) and sum(authors[one] == authors[candidate] for one in run) >= cap.count
    topics: NDArray[np.uint64] = case.candidates.facts["topic_tags"]
    return any(topic and sum(topic in topics[one] for one in run) >= cap.count for topic in topics[candidate])


@given(
    st.just(Rules()) | st.just(Rules(blocked_authors=("x",))) | RULES, st.lists(st.tuples(cases(), st.booleans()), min_size=1, max_size=4)
)
def test_slates_of_a_batch_are_each_requests_own(rules: Rules, batch: list[tuple[Case, bool]]) -> None:
    """Whatever stands beside it, with and without rules, for people who want to be known and who do not."""
    cases, viewers = [case for case, _ in batch], [Viewer(is_personalized=is_personalized) for _, is_personalized in batch]
    starts = np.cumsum([0, *(len(case.candidates.item_ids) for case in cases)])
    columns = [[case.candidates.facts[name] for case in cases] for name in FACTS]
    scores = np.concatenate([case.candidates.scores for case in cases])
    names = [name for case in cases for name in case.candidates.item_ids]
    candidates = Candidates(names, scores, scores, dict(zip(FACTS, map(np.concatenate, columns), strict=True)))

    found = Slates.by(rules).slates(candidates, starts, [case.request for case in cases], viewers)
    single = [Slates.by(rules).slate(case.candidates, case.request, viewer) for case, viewer in zip(cases, viewers, strict=True)]

    assert found.counts.tolist() == [len(slate.order) for slate in single]
    assert found.rows.tolist() == [row for begin, slate in zip(starts[:-1], single, strict=True) for row in (begin + slate.order).tolist()]
    assert found.touched.tolist() == [touch for slate in single for touch in slate.touched[slate.order].tolist()]
    assert found.propensities.tolist() == [one for slate in single for one in slate.propensities.tolist()]


@given(RULES, cases())
def test_no_candidate_is_lost_or_invented(rules: Rules, case: Case) -> None:
    """Asked for all, a slate holds every candidate that no rule leaves out, each once; asked for k, the first k of the same."""
    whole, cut = made(rules, all_of(case)), made(rules, case)

    assert sorted(whole.order.tolist()) == sorted(by_score(case))
    assert cut.order.tolist() == whole.order.tolist()[: case.request.k]


@given(cases())
def test_no_rules_change_nothing(case: Case) -> None:
    """An empty set of rules is the order of the scores."""
    assert made(Rules(), all_of(case)).order.tolist() == by_score(case)


@given(RULES, cases())
def test_a_cap_is_broken_only_where_nobody_keeps_it(rules: Rules, case: Case) -> None:
    """Who breaks a cap stands there because all that are left break one: topic caps are given up first, author caps last."""
    order = made(rules, all_of(case)).order.tolist()
    for place, candidate in enumerate(order):
        above, left = order[:place], [one for one in order[place:] if one in case.seen or candidate not in case.seen]
        left = [one for one in left if (one in case.seen) == (candidate in case.seen)]
        broken = [cap for cap in rules.caps if breaks(cap, case, above, candidate)]
        if any(cap.of == "author" for cap in broken):
            assert all(any(breaks(cap, case, above, one) for cap in rules.caps if cap.of == "author") for one in left)
        if broken:
            assert all(any(breaks(cap, case, above, one) for cap in rules.caps) for one in left)


@given(RULES, cases())
def test_displacement_is_bounded(rules: Rules, case: Case) -> None:
    """Without caps nothing stands further from where its score has it than displacement_max."""
    order = made(msgspec.structs.replace(rules, caps=()), all_of(case)).order.tolist()
    ranks = {candidate: rank for rank, candidate in enumerate(by_score(case))}

    assert all(abs(place - ranks[candidate]) <= rules.displacement_max for place, candidate in enumerate(order))


@given(RULES, cases())
def test_who_was_seen_stands_behind_who_was_not(rules: Rules, case: Case) -> None:
    """Whatever else the rules do, what the user saw already comes last, and says why."""
    slate = made(rules, all_of(case))
    seen = [candidate in case.seen for candidate in slate.order.tolist()]

    assert seen == sorted(seen)
    assert all(bool(slate.touched[place] & Touch.SEEN) == (place in case.seen) for place in range(len(slate.touched)))


@given(RULES, cases())
def test_the_same_request_gets_the_same_slate(rules: Rules, case: Case) -> None:
    """Lots are drawn from the request's id: another replica draws the same."""
    assert made(rules, case).order.tolist() == made(rules, case).order.tolist()


@given(RULES, cases())
def test_every_item_that_is_left_out_says_why(rules: Rules, case: Case) -> None:
    """Who is not in the whole slate is touched by a rule that leaves out, and nobody else is."""
    slate = made(rules, all_of(case))
    left_out = set(range(len(case.candidates.item_ids))) - set(slate.order.tolist())

    assert left_out == set(np.flatnonzero(slate.touched & OUT).tolist())


@given(cases(), SHARES)
def test_propensities_are_those_of_the_draw(case: Case, epsilon: float) -> None:
    """Over many request ids, an item stands first as often as its propensity says."""
    rules, case = Rules(exploration=Exploration(epsilon=epsilon), displacement_max=3), all_of(case)
    if not by_score(case):
        return
    slates = [
        made(rules, Case(case.candidates, msgspec.structs.replace(case.request, request_id=f"r{number}"), case.seen))
        for number in range(400)
    ]
    firsts = np.bincount([int(slate.order[0]) for slate in slates], minlength=len(case.candidates.item_ids)) / len(slates)
    said = {int(slate.order[0]): float(slate.propensities[0]) for slate in slates}

    assert all(abs(firsts[candidate] - propensity) < 0.15 for candidate, propensity in said.items())
    assert sum(said.values()) <= 1 + 1e-9
