"""Who asks: bearer tokens, each of one tenant, kept as hashes in a file.

A line of the file is `sha256hex tenant [requests_per_second]`; empty lines and those that begin with # say nothing. A token must be
random and long (32 bytes of `secrets.token_urlsafe`): a plain SHA-256 hides no word that could be guessed. Tokens of one tenant share
its limit.
"""

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ranker.fronts.limits import Limit
from schemas.errors import SettingsError
from schemas.records import ID_BYTES_MAX

SCHEME = "bearer"
#: Characters of a SHA-256 in hex.
DIGEST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token stands for. limit: of all tokens of the tenant together, None where there is none."""

    tenant: str
    limit: Limit | None


#: Who asks where there is no file of tokens.
ANYBODY = Caller("", None)


class Tokens:
    """The tokens that are let in."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        """Callers: by the hex digest of their token."""
        self._callers = dict(callers)

    def caller(self, authorization: str) -> Caller | None:
        """Who says `Bearer TOKEN` in a header or in gRPC metadata; None for a token that is not known, or for none.

        Every digest is compared, and each in constant time: how long it takes tells nothing about any of them.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != SCHEME:
            return None
        said = hashlib.sha256(token.strip().encode()).hexdigest()
        found = [caller for digest, caller in self._callers.items() if hmac.compare_digest(digest, said)]
        return found[0] if found else None


def load(file: Path) -> Tokens:
    """The tokens of a file. Raises SettingsError listing each wrong line."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"tokens_file {file} cannot be read: {error}. Give a text file that this process may read.") from error
    return parse(lines, str(file))


def parse(lines: Iterable[str], where: str) -> Tokens:
    """The tokens of these lines. where: what an error calls them. Raises SettingsError listing each wrong line, and where there is none."""
    faults: list[str] = []
    callers: dict[str, Caller] = {}
    limits: dict[str, Limit | None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            digest, tenant, rate = _parts(line)
            limit = limits.setdefault(tenant, Limit(rate) if rate else None)
            if (limit.rate if limit else None) != rate:
                raise ValueError(f"tenant {tenant!r} has another limit on a line above: give all of its tokens the same")  # noqa: TRY301  # all faults of a line end in one place
        except ValueError as error:
            faults.append(f"{where}, line {number}: {error}")
        else:
            callers[digest] = Caller(tenant, limit)
    if not callers and not faults:
        faults.append(f"{where} holds no token: nobody could ask. Leave tokens_file out to let everybody in")
    if faults:
        raise SettingsError("; ".join(faults) + ".")
    return Tokens(callers)


def _parts(line: str) -> tuple[str, str, float | None]:
    """Digest, tenant and requests a second. Raises ValueError; what stands there is not repeated, for it could be a token."""
    words = line.split()
    if len(words) not in {2, 3}:
        raise ValueError(f"it has {len(words)} words and takes 'sha256hex tenant [requests_per_second]'")
    digest, tenant = words[0].lower(), words[1]
    if len(digest) != DIGEST_LENGTH or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("its first word is no SHA-256 in hex: give the output of sha256sum over the token, not the token")
    if len(tenant.encode()) > ID_BYTES_MAX:
        raise ValueError(f"its tenant is longer than {ID_BYTES_MAX} bytes")
    return digest, tenant, _rate(words[2]) if words[2:] else None


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"its limit is {word!r}: a number of requests a second, over 0")
    return rate
