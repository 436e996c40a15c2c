"""A simulated feed: readers with tastes, items with a hidden quality, clicks and dwell that follow from both.

Everything is drawn from one seed and no clock is read: the same calls with the same times give the same feed. What a ranker is to
find out is in the clicks: of an item's quality its content record shows only a noisy view, of a reader's taste nothing.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.record import hash_of
from schemas.errors import SettingsError
from schemas.records import CANDIDATES_COUNT_MAX, DWELL_MS_MAX, Click, Content, Dwell, Event, Impression, RankRequest, User
from schemas.windows import DAY_MS

RANKED, CONTROL = "ranked", "control"
TOPICS_COUNT = 12
AUTHORS_COUNT = 150
#: Log-odds of a click at the top of the page, for an item of middling quality and match; sets the CTR near 8 % in input order.
CLICK_LOG_ODDS = -2.32
#: What one standard deviation of quality or match adds to the log-odds. The first is what a ranker can learn from an item's CTR.
QUALITY_LOG_ODDS = 0.9
MATCH_LOG_ODDS = 0.5
#: The chance that a place is looked at falls with this power of the place, counted from 1: at the tenth it is a half.
POSITION_POWER = 0.3
#: How far an item's popularity falls with its rank (Zipf's exponent).
POPULARITY_POWER = 0.7
#: How much of the spread of log dwell comes from the match.
DWELL_MATCH_SHARE = 0.2
#: Of the clicks, this share is followed by a dwell event, the next one carries its dwell itself, the rest says nothing of it.
DWELL_LATER_SHARE, DWELL_WITHIN_SHARE = 0.6, 0.2
#: From a page to a click on it: a part that nobody is faster than, and the mean of the rest (milliseconds).
CLICK_DELAY_MS_MIN, CLICK_DELAY_MS_MEAN = 700, 4_000
#: How long after its page an event may happen (milliseconds), unless said otherwise: less than what is refused as future-dated.
DELAY_MS_MAX = 240_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Surface:
    """How long readers stay: log-normal dwell in seconds, and the share that is back at once."""

    mu: float
    sigma: float
    zero_share: float = 0.0


SURFACES = {
    "news": Surface(3.19, 1.40, 0.06),
    "tapped_video": Surface(2.46, 1.50),
    "one_column_video": Surface(3.32, 1.07),
}


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """What kind of feed. surface: one of SURFACES. Raises SettingsError for counts that do not fit one another."""

    seed: int = 0
    users_count: int = 3_000
    items_count: int = 1_500
    surface: str = "news"
    page_items_count: int = 10
    candidates_count: int = 50

    def __post_init__(self) -> None:
        """Refuse what no page can be made of."""
        if self.surface not in SURFACES:
            raise SettingsError(f"surface is {self.surface!r}. Use one of {', '.join(SURFACES)}.")
        counts = (1, self.page_items_count, self.candidates_count, min(self.items_count, CANDIDATES_COUNT_MAX))
        if list(counts) != sorted(counts) or self.users_count < 1:
            raise SettingsError(
                f"{self.users_count} users, pages of {self.page_items_count} from {self.candidates_count} candidates of "
                f"{self.items_count} items: each must be at least 1, none above the next, candidates at most {CANDIDATES_COUNT_MAX}."
            )


class Feed:
    """A feed and its readers. Its only state is the generator: calls in the same order give the same events."""

    def __init__(self, settings: FeedSettings) -> None:
        """Draw the users and the items."""
        self.settings = settings
        self._random = random = np.random.default_rng(settings.seed)
        users, items = settings.users_count, settings.items_count
        self._tastes = random.normal(size=(users, TOPICS_COUNT))
        self._activity = np.cumsum(random.lognormal(sigma=1.0, size=users))
        self._user_age_ms = (random.exponential(200 * DAY_MS, users)).astype(np.int64)
        self._item_topics = _two_topics(random, items)
        self._quality = random.normal(size=items)
        self._quality_seen = _sigmoid(self._quality + random.normal(size=items))
        self._authors = random.integers(AUTHORS_COUNT, size=items)
        self._item_age_ms = random.exponential(3 * DAY_MS, items).astype(np.int64)
        self._log_popularity = -POPULARITY_POWER * np.log(random.permutation(items) + 1)
        self._requests_count = 0

    def content(self, ts_ms: int) -> list[Content]:
        """Every item, published at ts_ms."""
        return [
            Content(
                item_id=f"i{item}",
                author_id=f"a{self._authors[item]}",
                created_at_ms=ts_ms - int(self._item_age_ms[item]),
                ts_ms=ts_ms,
                language="en",
                topic_tags=[f"t{topic}" for topic in dict.fromkeys(self._item_topics[item].tolist())],
                quality_score=float(self._quality_seen[item]),
            )
            for item in range(self.settings.items_count)
        ]

    def users(self, ts_ms: int) -> list[User]:
        """Every user, published at ts_ms."""
        return [
            User(user_id=f"u{user}", created_at_ms=ts_ms - int(age_ms), ts_ms=ts_ms, locale="en")
            for user, age_ms in enumerate(self._user_age_ms)
        ]

    def request(self, ts_ms: int) -> RankRequest:
        """A user opens the feed: active users more often, popular items more often among the candidates, in no order."""
        self._requests_count += 1
        user = np.searchsorted(self._activity, self._random.random() * self._activity[-1])
        # The largest of log weight + Gumbel noise are a draw without replacement (Gumbel-top-k; Vieira 2014, Kool et al. 2019).
        keys = self._log_popularity + self._random.gumbel(size=self.settings.items_count)
        drawn = np.argpartition(-keys, self.settings.candidates_count - 1)[: self.settings.candidates_count]
        return RankRequest(
            request_id=f"s{self.settings.seed}-{ts_ms}-{self._requests_count}",
            user_id=f"u{user}",
            candidate_item_ids=[f"i{item}" for item in self._random.permutation(drawn).tolist()],
            k=self.settings.page_items_count,
            ts_ms=ts_ms,
            context={"surface": self.settings.surface},
        )

    def click_probability(self, user_id: str, item_ids: Sequence[str]) -> Floats:
        """The chance of a click at the top of the page, float64 [n]: what a perfect ranker would order by."""
        items = _numbers(item_ids)
        return _sigmoid(CLICK_LOG_ODDS + QUALITY_LOG_ODDS * self._quality[items] + MATCH_LOG_ODDS * self._match(user_id, items))

    def _match(self, user_id: str, items: NDArray[np.int64]) -> Floats:
        """How well items meet a user's taste, standard normal over users, float64 [n]."""
        both = self._tastes[int(user_id[1:])][self._item_topics[items]]
        one = self._item_topics[items, 0] == self._item_topics[items, 1]
        return np.asarray(both.sum(axis=1) / np.where(one, 2, np.sqrt(2)))

    def react(
        self,
        request: RankRequest,
        shown_item_ids: Sequence[str],
        ts_ms: int,
        model_version: str | None = None,
        delay_ms_max: int = DELAY_MS_MAX,
    ) -> list[Event]:
        """What the user does with a page shown at ts_ms: impressions, clicks and dwells in order of time.

        delay_ms_max: every delay is squeezed below this, in the same order, so that a live view need not wait for slow readers: the
        event of a dwell then comes earlier than the reader, what it says is as drawn.
        """
        page = [
            Impression(
                request_id=request.request_id,
                user_id=request.user_id,
                item_id=item_id,
                ts_ms=ts_ms,
                position=place,
                model_version=model_version,
                context=request.context,
            )
            for place, item_id in enumerate(shown_item_ids)
        ]
        acts = self._acts(request.user_id, shown_item_ids, delay_ms_max)
        came = itertools.chain.from_iterable(_act_events(page[act.place], act) for act in acts)
        return sorted([*page, *came], key=lambda event: event.ts_ms)

    def _acts(self, user_id: str, shown_item_ids: Sequence[str], delay_ms_max: int) -> Iterator["_Act"]:
        """The clicks on a page."""
        chance = self.click_probability(user_id, shown_item_ids) * (np.arange(len(shown_item_ids)) + 1.0) ** -POSITION_POWER
        clicked = np.flatnonzero(self._random.random(len(chance)) < chance)
        dwell_ms = self._dwell_ms(self._match(user_id, _numbers(shown_item_ids)[clicked]))
        click_ms = CLICK_DELAY_MS_MIN + self._random.exponential(CLICK_DELAY_MS_MEAN, len(clicked))
        kinds = self._random.random(len(clicked))
        columns = (clicked, dwell_ms, _squeezed(click_ms, delay_ms_max), _squeezed(click_ms + dwell_ms, delay_ms_max), kinds)
        return itertools.starmap(_Act, zip(*(column.tolist() for column in columns), strict=True))

    def _dwell_ms(self, match: Floats) -> NDArray[np.int64]:
        """How long each clicked item is read, int64 [n] milliseconds."""
        surface = SURFACES[self.settings.surface]
        noise = np.sqrt(1 - DWELL_MATCH_SHARE**2) * self._random.normal(size=len(match)) + DWELL_MATCH_SHARE * match
        drawn = np.exp(surface.mu + surface.sigma * noise) * (self._random.random(len(match)) >= surface.zero_share)
        dwell_ms: NDArray[np.int64] = np.minimum(drawn * 1000, DWELL_MS_MAX).astype(np.int64)
        return dwell_ms

    @staticmethod
    def arm(user_id: str) -> str:
        """Whether a user sees ranked pages or the input order: half of them each, the same in every feed."""
        return RANKED if hash_of(f"arm:{user_id}") % 2 else CONTROL


class _Act(NamedTuple):
    """A click, and what came after. kind: in [0, 1), decides how its dwell is told."""

    place: int
    dwell_ms: int
    click_delay_ms: int
    back_delay_ms: int
    kind: float


def _act_events(shown: Impression, act: _Act) -> list[Event]:
    """The events of a click on an impression."""
    later = act.kind < DWELL_LATER_SHARE
    within = not later and act.kind < DWELL_LATER_SHARE + DWELL_WITHIN_SHARE
    click = Click(
        request_id=shown.request_id,
        user_id=shown.user_id,
        item_id=shown.item_id,
        ts_ms=shown.ts_ms + act.click_delay_ms,
        dwell_ms=act.dwell_ms if within else None,
        model_version=shown.model_version,
    )
    if not later:
        return [click]
    back = Dwell(
        request_id=shown.request_id,
        user_id=shown.user_id,
        item_id=shown.item_id,
        ts_ms=shown.ts_ms + act.back_delay_ms,
        dwell_ms=act.dwell_ms,
        model_version=shown.model_version,
    )
    return [click, back]


def _squeezed(delay_ms: Floats, delay_ms_max: int) -> NDArray[np.int64]:
    """Short delays almost as they are, long ones just below the maximum, int64 [n]."""
    squeezed: NDArray[np.int64] = (-np.expm1(-delay_ms / delay_ms_max) * delay_ms_max).astype(np.int64)
    return squeezed


def _two_topics(random: np.random.Generator, items_count: int) -> NDArray[np.int64]:
    """Two topics an item, int64 [n, 2]; the same one twice means one."""
    topics = random.integers(TOPICS_COUNT, size=(items_count, 2))
    one = random.random(items_count) < 0.5
    topics[one, 1] = topics[one, 0]
    return topics


def _numbers(item_ids: Sequence[str]) -> NDArray[np.int64]:
    return np.array([int(item_id[1:]) for item_id in item_ids], np.int64)


def _sigmoid(log_odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-log_odds)))
