"""What HTTP and gRPC say of an answer: straight from what its response was made of, else from its bytes, which say the same."""

from ranker.fronts.shapes import Place, Ranked
from ranker.rank import Answer
from schemas import codec
from schemas.records import RankResponse
from schemas.topics import RANK_RESPONSES


def ranked(answer: Answer) -> Ranked:
    """An answer's items and versions."""
    if answer.said is None:
        return ranked_again(answer.response)
    items, facts, latency_ms = answer.said
    places = list(map(Place, *items.columns()))
    return Ranked(places, facts.model_version, facts.feature_version, latency_ms, facts.request_id, facts.degraded, facts.generation)


def ranked_again(response: bytes) -> Ranked:
    """An encoded RankResponse's. Raises DecodeError for what is none."""
    found = codec.decode(RANK_RESPONSES, response)
    assert isinstance(found, RankResponse), found
    places = [Place(item.item_id, item.score, item.reasons) for item in found.ranked_items]
    versions = (found.model_version, found.feature_version)
    return Ranked(places, *versions, found.latency_ms, found.request_id, found.degraded, found.generation)
