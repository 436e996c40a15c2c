"""Every error Millstream raises on purpose.

MillstreamError
├── SettingsError        a setting or a file named by one is missing or wrong; all of them are listed
├── StackError           the local Kafka or store cannot be started, reached or stopped
├── DecodeError          bytes are not one of our records; carries the reason code of its dead letter
├── SchemaError          two versions of a record cannot read each other, or a schema is not known
├── StoreError           the online store refused a call or holds what it should not
│   ├── GenerationError  a generation is another registry's, is not there, or must not be dropped
│   └── StoreAwayError   the store does not answer now: worth another try
├── LogError             Kafka, or a file in its place, did not take or give what it was asked
├── BundleError          a model folder is incomplete, was changed, or scores differently from its trainer
├── Http2Error           a client of gRPC broke the rules of HTTP/2; carries the code that its connection ends with
└── RankError            a ranker refused a request over HTTP; carries its status, detail and the field at fault
    └── RankerAwayError  it did not answer inside the deadline, or is left alone: worth another try

A message says what happened, with which values, and what to do next.
"""

from collections.abc import Iterable

#: What the last words of a Kafka client ask for, by what they hold.
KAFKA_ADVICE = {
    "uthentication": "Mend kafka_sasl_username, kafka_sasl_password or kafka_sasl_mechanism.",
    "certificate": "kafka_tls_ca_file must be the CA that signed the brokers' certificates, which must name the host that we connect to.",
    "SSL": "kafka_security_protocol must be what that port speaks, and a broker may ask for kafka_tls_cert_file and kafka_tls_key_file.",
}


def kafka_advice(said: Iterable[object]) -> str:
    """Why Kafka did not answer, by what its client said meanwhile, and what to do about it."""
    lines = [str(line) for line in said]
    found = ((line, advice) for word, advice in KAFKA_ADVICE.items() for line in reversed(lines) if word in line)
    line, advice = next(found, ("", "Is it up, and kafka_security_protocol what it speaks? `millstream stack up` starts one."))
    return f"{line} {advice}".strip()


class MillstreamError(Exception):
    """Root of the tree: catch this at a program's edge, print it, and exit 2."""


class SettingsError(MillstreamError):
    """A setting is missing or wrong."""


class StackError(MillstreamError):
    """The local stack cannot do what it was asked."""


class DecodeError(MillstreamError):
    """Bytes are not one of our records.

    reason: the code that stands in the dead letter, one of `schemas.records.Reason`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the code beside the sentence."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SchemaError(MillstreamError):
    """Two versions of a record cannot read each other, or a schema is not known."""


class StoreError(MillstreamError):
    """The online store refused a call or holds what it should not."""


class GenerationError(StoreError):
    """A generation is another registry's, is not there, or must not be dropped."""


class StoreAwayError(StoreError):
    """The store does not answer now: worth another try."""


class LogError(MillstreamError):
    """Kafka, or a file in its place, did not take or give what it was asked."""


class BundleError(MillstreamError):
    """A model folder is incomplete, was changed, or scores differently from its trainer."""


class Http2Error(MillstreamError):
    """A client of gRPC broke the rules of HTTP/2.

    code: what its connection ends with, one of ranker.fronts.rpc.frames' error codes.
    """

    def __init__(self, code: int, message: str) -> None:
        """Keep the code beside the sentence."""
        super().__init__(message)
        self.code = code


class RankError(MillstreamError):
    """A ranker refused a request over HTTP.

    status: of its answer, None where there was none. detail, at: its problem document's, at is the field at fault ("" where none is).
    retry_after_s: it asks to be left alone for so long (seconds).
    """

    def __init__(self, message: str, *, status: int | None = None, detail: str = "", at: str = "", retry_after_s: float = 0.0) -> None:
        """Keep what the ranker said beside the sentence."""
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.at = at
        self.retry_after_s = retry_after_s


class RankerAwayError(RankError):
    """The ranker does not answer now: worth another try."""
