"""Bearer tokens and the limits of their tenants."""

import hashlib

import pytest

from ranker.fronts.auth import parse
from ranker.fronts.limits import Limit
from schemas.errors import SettingsError


def line(token: str, rest: str = "shop") -> str:
    return f"{hashlib.sha256(token.encode()).hexdigest()} {rest}"


def test_a_token_stands_for_its_tenant() -> None:
    """The token, and not its hash, names the tenant of its line."""
    tokens = parse(["# ours", "", line("one"), line("two", "news")], "tokens")

    caller = tokens.caller("Bearer two")
    assert caller is not None
    assert caller.tenant == "news"


@pytest.mark.parametrize("said", ["", "one", "Basic one", "Bearer", "Bearer ", "Bearer One", "Bearer " + line("one").split()[0]])
def test_what_is_no_known_token_is_nobody(said: str) -> None:
    """Another scheme, another token, or the hash itself lets nobody in."""
    assert parse([line("one")], "tokens").caller(said) is None


def test_every_wrong_line_is_named_and_no_word_of_it_that_could_be_a_token() -> None:
    """All faults come at once, by number; a token that stands where its hash should is not repeated."""
    with pytest.raises(SettingsError) as caught:
        parse(["secret shop", line("one"), line("two", "shop x"), line("three", "a 1 2"), line("four", "b nan")], "tokens")

    said = str(caught.value)
    assert [number for number in range(1, 6) if f"line {number}:" in said] == [1, 3, 4, 5]
    assert "secret" not in said


def test_a_file_without_tokens_is_refused() -> None:
    """A file that would let nobody in is a mistake."""
    with pytest.raises(SettingsError, match="no token"):
        parse(["# none yet"], "tokens")


def test_two_limits_of_one_tenant_are_refused() -> None:
    """Which of them should hold is not ours to say."""
    with pytest.raises(SettingsError, match="another limit"):
        parse([line("one", "shop 5"), line("two", "shop 6")], "tokens")


def test_tokens_of_one_tenant_share_its_limit() -> None:
    """A second token buys no second bucket."""
    tokens = parse([line("one", "shop 5"), line("two", "shop 5")], "tokens")

    one, two = tokens.caller("Bearer one"), tokens.caller("Bearer two")
    assert one is not None
    assert two is not None
    assert one.limit is two.limit


def test_a_bucket_gives_a_seconds_worth_and_then_says_how_long_to_wait() -> None:
    """Five a second: five at once, the sixth in a fifth of a second."""
    limit = Limit(5)

    assert [limit.wait_s(100.0) for _ in range(6)] == [0, 0, 0, 0, 0, pytest.approx(0.2)]


def test_a_bucket_fills_evenly_and_never_over() -> None:
    """After the wait that was told there is one request, after an hour a second's worth."""
    limit = Limit(2)
    emptied = [limit.wait_s(0.0) for _ in range(3)]
    waited = [limit.wait_s(emptied[-1]), limit.wait_s(emptied[-1])]
    later = [limit.wait_s(3_600.0) for _ in range(3)]

    assert (waited[0], waited[1] > 0, later[:2], later[2] > 0) == (0, True, [0, 0], True)


def test_less_than_one_a_second_still_lets_one_through() -> None:
    """A bucket has room for one request at least."""
    assert Limit(0.1).wait_s(0.0) == 0
