"""Settings: a flag, else a MILLSTREAM_* variable, else millstream.toml, else the default. All wrong ones are reported at once."""

import importlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.errors import SettingsError
from schemas.features import Registry

FILE = Path("millstream.toml")


def _address(value: str) -> str:
    """host:port, comma separated."""
    for part in value.split(","):
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError("a list of host:port, for one localhost:9092")
    return value


def _store_url(value: str) -> str:
    if urlsplit(value).scheme not in ("redis", "rediss") or not urlsplit(value).hostname:
        raise ValueError("a URL like redis://localhost:6379 or rediss://host:6380/0")
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
    if not value.isdigit() or int(value) > 65535:
        raise ValueError("a port, 0 to 65535; 0 means none")
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


def _names(value: str) -> frozenset[str]:
    return frozenset(part for part in value.split(",") if part)


def _setting(default: str, help_: str, parse: Any = str) -> Any:  # noqa: ANN401  # dataclasses.field's own type
    return field(metadata={"default": default, "help": help_, "parse": parse})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Each is a flag --like-this, a variable MILLSTREAM_LIKE_THIS and a key like_this in millstream.toml."""

    kafka_bootstrap: str = _setting("localhost:9092", "Kafka, host:port[,host:port]", _address)
    store_url: str = _setting("redis://localhost:6379", "the online store", _store_url)
    topic_prefix: str = _setting("", "put in front of every topic's name", _prefix)
    group_id: str = _setting("millstream", "consumer group; ingest and serve add their own names")
    features: Registry = _setting("schemas.features:REGISTRY", "the feature registry, module:NAME", _registry)
    models_uri: Path = _setting("models", "folder of model bundles", Path)
    state_dir: Path = _setting(".state", "folder of the local stack's data and logs", Path)
    metrics_port: int = _setting("0", "port of /metrics; 0 means none", _port)
    repeat_offsets: int = _setting(
        str(REPEAT_OFFSETS), "how far back in its partition an event is known again that was sent twice; 0 counts every one", _count
    )
    schema_registry_url: str = _setting("", "a Confluent-compatible schema registry", _url)
    reply_topics: frozenset[str] = _setting("", "topics that rank requests may name for their answers, comma separated", _names)


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
            faults.append(f"{where} is {raw!r}: it takes {error}")
    if faults:
        raise SettingsError("; ".join(faults) + ".")
    return Settings(**values)


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
    value = table[name]
    return f"{file}: {name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not TOML: {error}. Mend that line, or move the file away.") from error
