"""What an HTTP client did wrong, as a problem document (RFC 9457)."""

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from ranker.fronts.shapes import Fault

TYPE = b"application/problem+json"


class Problem(Exception):  # noqa: N818  # RFC 9457's own word; it is an answer, not a failure of ours
    """An answer other than the one that was asked for. at: which field is at fault, as a JSON path; headers: that go with it."""

    def __init__(self, status: HTTPStatus, detail: str, at: str = "", headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Detail says what is wrong, with the value."""
        super().__init__(detail)
        self.status = status
        self.at = at
        self.headers = list(headers)

    def body(self) -> bytes:
        """The document."""
        return msgspec.json.encode(Fault(title=self.status.phrase, status=int(self.status), detail=str(self), at=self.at or msgspec.UNSET))


def of_invalid(error: msgspec.DecodeError | RecursionError) -> Problem:
    """Bytes that are no JSON (or JSON too deep to be read), or JSON that is no such request."""
    if not isinstance(error, msgspec.ValidationError):
        return Problem(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}")
    detail, _, at = str(error).partition(" - at `")
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, at.rstrip("`") or "$")
