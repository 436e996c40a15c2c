"""Settings: a flag, else a MILLSTREAM_* variable, else millstream.toml, else the default. All wrong ones are reported at once."""

import importlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from online_store.servers.address import Tls, parse_url, without_password
from ranker.budgets import BUDGETS, Budgets
from ranker.slate import rules
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.errors import SettingsError
from schemas.features import Registry
from schemas.topics import TOPICS

FILE = Path("millstream.toml")
PORT_MAX = 65_535
#: Not repeated even where they are wrong.
SECRET = ("kafka_sasl_password", "lake_storage_options")


def _address(value: str) -> str:
    """host:port, comma separated."""
    for part in value.split(","):
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError("a list of host:port, for one localhost:9092")
    return value


def _store_url(value: str) -> str:
    parse_url(value)
    return value


def _url(value: str) -> str:
    if value and urlsplit(value).scheme not in ("http", "https"):
        raise ValueError("a URL like http://localhost:8081, or nothing")
    return value


def _prefix(value: str) -> str:
    if not all(letter.isalnum() or letter in "._-" for letter in value):
        raise ValueError("letters, digits, '.', '_' and '-' only: Kafka's alphabet for topics")
    return value


def _port(value: str) -> int:
    if not value.isdigit() or int(value) > PORT_MAX:
        raise ValueError(f"a port, 0 to {PORT_MAX}; 0 means none")
    return int(value)


def _registry(value: str) -> Registry:
    """The registry that "module:NAME" names."""
    module, _, name = value.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"module:NAME of a registry, for one schemas.features:REGISTRY ({error})") from error
    if not isinstance(found, Registry):
        raise ValueError(f"a schemas.features.Registry; this one is a {type(found).__name__}")  # noqa: TRY004  # one error for all parsers
    return found


def _count(value: str) -> int:
    if not value.isdigit():
        raise ValueError("a whole number, 0 or more")
    return int(value)


def _processes(value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ValueError("a whole number, 1 or more")
    return int(value)


def _pairs(value: str) -> dict[str, Any]:
    """What "a=1,b=2" says, or the same as a JSON object."""
    if value.startswith("{"):
        found: dict[str, Any] = json.loads(value)
        return found
    return dict(part.strip().partition("=")[::2] for part in value.split(",") if part.strip())


def _options(value: str) -> dict[str, str]:
    return {name: str(option) for name, option in _pairs(value).items()}


def _retention(value: str) -> dict[str, int]:
    """Days by topic."""
    found = {topic: str(days) for topic, days in _pairs(value).items()}
    if not all(topic in TOPICS and days.isdigit() and int(days) for topic, days in found.items()):
        raise ValueError(f"days, 1 or more, by topic, for one impressions=400,rank-telemetry=90; topics are {', '.join(TOPICS)}")
    return {topic: int(days) for topic, days in found.items()}


def _budgets(value: str) -> Budgets:
    """The budgets of "store=25,score=20", or of the same as a JSON object; a stage that is not named keeps its own."""
    faults: list[str] = []
    given: dict[str, int] = {}
    for stage, ms in _pairs(value).items():
        if f"{stage}_ms" not in asdict(BUDGETS):
            faults.append(f"{stage!r} is no stage")
        elif not re.fullmatch("-?[0-9]{1,9}", str(ms)):
            faults.append(f"{stage} is {ms!r}, no whole number")
        else:
            given[f"{stage}_ms"] = int(ms)
    try:
        found = replace(BUDGETS, **given)
    except SettingsError as error:
        faults.append(str(error))
    if faults:
        stages = ",".join(f"{name.removesuffix('_ms')}={ms}" for name, ms in asdict(BUDGETS).items())
        raise ValueError(f"milliseconds by stage, for one {stages} ({'; '.join(faults)})")
    return found


def _names(value: str) -> frozenset[str]:
    return frozenset(part for part in value.split(",") if part)


def _path(value: str) -> Path | None:
    if value and not Path(value).is_file():
        raise ValueError("a file that is there")
    return Path(value) if value else None


def _path_to_be(value: str) -> Path | None:
    return Path(value) if value else None


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return parse


def _setting(default: str, help_: str, parse: Any = str, *, shown: bool = True) -> Any:  # noqa: ANN401  # dataclasses.field's own type
    """shown: whether its value may stand in a repr and so in a log."""
    return field(repr=shown, metadata={"default": default, "help": help_, "parse": parse})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Each is a flag --like-this, a variable MILLSTREAM_LIKE_THIS and a key like_this in millstream.toml."""

    kafka_bootstrap: str = _setting("localhost:9092", "Kafka, host:port[,host:port]", _address)
    store_url: str = _setting("redis://localhost:6379", "the online store", _store_url, shown=False)
    store_tls_ca_file: Path | None = _setting("", "who signed the store's certificate, PEM; the system's authorities if none", _path)
    store_tls_cert_file: Path | None = _setting("", "our certificate, PEM, for a store that asks for one", _path)
    store_tls_key_file: Path | None = _setting("", "the key of that certificate, PEM", _path)
    kafka_security_protocol: str = _setting(
        "PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL", _one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    )
    kafka_sasl_mechanism: str = _setting(
        "SCRAM-SHA-512", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", _one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    )
    kafka_sasl_username: str = _setting("", "who we are to Kafka")
    kafka_sasl_password: str = _setting("", "its password: as a variable or in the file, for a flag is seen by others", shown=False)
    kafka_tls_ca_file: Path | None = _setting("", "who signed the brokers' certificates, PEM; the system's authorities if none", _path)
    kafka_tls_cert_file: Path | None = _setting("", "our certificate, PEM, for brokers that ask for one", _path)
    kafka_tls_key_file: Path | None = _setting("", "the key of that certificate, PEM", _path)
    topic_prefix: str = _setting("", "put in front of every topic's name", _prefix)
    group_id: str = _setting("millstream", "consumer group; ingest and serve add their own names")
    features: Registry = _setting("schemas.features:REGISTRY", "the feature registry, module:NAME", _registry)
    models_uri: Path = _setting("models", "folder of model bundles", Path)
    snapshot_file: Path | None = _setting("", "items' records, for those that the store lost: see `replay backfill-snapshot`", _path_to_be)
    state_dir: Path = _setting(".state", "folder of the local stack's data and logs", Path)
    lake_uri: str = _setting("", "the lake, a folder or s3://bucket/path; the folder `lake` in state_dir if none")
    lake_storage_options: dict[str, str] = _setting(
        "", "of its object store, by deltalake's names: the table [lake_storage_options] of the file", _options, shown=False
    )
    lake_retention_days: dict[str, int] = _setting(
        "", "how many days the lake keeps, by topic: impressions=400,rank-telemetry=90; others for ever", _retention
    )
    metrics_port: int = _setting("0", "port of /metrics; 0 means none; each further process of `serve` has the next one", _port)
    repeat_offsets: int = _setting(
        str(REPEAT_OFFSETS), "how far back in its partition an event is known again that was sent twice; 0 counts every one", _count
    )
    http_port: int = _setting("0", "port of POST /v1/rank; 0 means none", _port)
    grpc_port: int = _setting("0", "port of millstream.v1.Ranking over gRPC; 0 means none", _port)
    http_host: str = _setting("127.0.0.1", "which address HTTP and gRPC listen at; 0.0.0.0 is all: give tokens then")
    processes: int = _setting("1", "how many processes `serve` runs: one a core", _processes)
    tokens_file: Path | None = _setting(
        "", "who may ask by HTTP and gRPC: lines `sha256hex tenant [requests_per_second]`; everybody", _path
    )
    schema_registry_url: str = _setting("", "a Confluent-compatible schema registry", _url)
    slate: rules.Rules = _setting("", "rules of the slate: the table [slate] of millstream.toml, or the same as JSON", rules.parse)
    budgets_ms: Budgets = _setting("", "what stages of a rank request may take, for one store=25,score=20; see operations.md", _budgets)
    reply_topics: frozenset[str] = _setting("", "topics that rank requests may name for their answers, comma separated", _names)

    @property
    def store_tls(self) -> Tls:
        """The files of TLS with the store."""
        return Tls(self.store_tls_ca_file, self.store_tls_cert_file, self.store_tls_key_file)

    @property
    def lake(self) -> tuple[str, dict[str, str]]:
        """Where the lake is, and the options of its object store."""
        return self.lake_uri or str(self.state_dir.absolute() / "lake"), self.lake_storage_options

    @property
    def kafka_security(self) -> dict[str, str]:
        """What every Kafka client is told, by librdkafka's names. Holds the password: not for logs."""
        protocol = self.kafka_security_protocol
        found: dict[str, object] = {}
        if protocol.endswith("SSL"):
            found |= {
                "ssl.ca.location": self.kafka_tls_ca_file,
                "ssl.certificate.location": self.kafka_tls_cert_file,
                "ssl.key.location": self.kafka_tls_key_file,
            }
        if protocol.startswith("SASL"):
            found |= {
                "sasl.mechanism": self.kafka_sasl_mechanism,
                "sasl.username": self.kafka_sasl_username,
                "sasl.password": self.kafka_sasl_password,
            }
        given = {name: str(value) for name, value in found.items() if value}
        return {} if protocol == "PLAINTEXT" else {"security.protocol": protocol, **given}


def load(flags: Mapping[str, str | None], variables: Mapping[str, str] = os.environ, file: Path = FILE) -> Settings:
    """Every setting, parsed. Raises SettingsError listing each wrong one with where it stands, its value and what would be right."""
    table = _table(file)
    known = {setting.name for setting in fields(Settings)}
    faults = [f"{file}: {name!r} is no setting" for name in table if name not in known]
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        where, raw = _raw(setting.name, setting.metadata["default"], flags, variables, file, table)
        try:
            values[setting.name] = setting.metadata["parse"](raw)
        except ValueError as error:
            value = "not shown" if setting.name in SECRET else repr(without_password(raw))
            faults.append(f"{where} is {value}: it takes {error}")
    faults += _misfits(values)
    if faults:
        raise SettingsError("; ".join(faults) + ".")
    return Settings(**values)


def _misfits(values: Mapping[str, Any]) -> list[str]:
    """Settings that do not go with one another."""
    faults = [
        f"{of}_tls_key_file is given without {of}_tls_cert_file: a key belongs to a certificate"
        for of in ("store", "kafka")
        if values.get(f"{of}_tls_key_file") and not values.get(f"{of}_tls_cert_file")
    ]
    protocol = values.get("kafka_security_protocol", "")
    if protocol.startswith("SASL") and not (values["kafka_sasl_username"] and values["kafka_sasl_password"]):
        faults.append(f"kafka_security_protocol is {protocol!r}: it takes kafka_sasl_username and kafka_sasl_password, too")
    last_port = values.get("metrics_port", 0) + values.get("processes", 1) - 1
    if values.get("metrics_port") and last_port > PORT_MAX:
        faults.append(f"metrics_port and the {values['processes']} processes' own behind it reach {last_port}: ports end at {PORT_MAX}")
    return faults


def _raw(
    name: str, default: str, flags: Mapping[str, str | None], variables: Mapping[str, str], file: Path, table: Mapping[str, Any]
) -> tuple[str, str]:
    """Where a setting's value stands, and the value."""
    flag = flags.get(name)
    if flag is not None:
        return f"--{name.replace('_', '-')}", flag
    variable = f"MILLSTREAM_{name.upper()}"
    if variable in variables:
        return variable, variables[variable]
    if name not in table:
        return name, default
    return f"{file}: {name}", _as_words(table[name])


def _as_words(value: object) -> str:
    """A value of the file as a flag would say it: a table as JSON."""
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not TOML: {error}. Mend that line, or move the file away.") from error
