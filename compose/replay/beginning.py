"""Where a rebuilt generation begins: what `--from` says, as offsets."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from replay.log import ReadableLog
from schemas.errors import SettingsError
from schemas.topics import SOURCES, Source

EARLIEST = "earliest"
OFFSET = re.compile(rf"({'|'.join(topic.name for topic in SOURCES)})/(\d+)=(\d+)")


def beginning(said: str, log: ReadableLog) -> dict[Source, int]:
    """The first offset that belongs to the generation, by source; a source that is not named begins with its log.

    Raises SettingsError for what is none of the forms, LogError.
    """
    if said == EARLIEST:
        return {}
    if Path(said).is_file():
        return _offsets(",".join(f"{source}={offset}" for source, offset in _table(Path(said)).items()))
    if "=" in said:
        return _offsets(said)
    moment_ms = _moment_ms(said)
    return {Source(topic.name, partition): offset for topic in SOURCES for partition, offset in log.offsets_at(topic, moment_ms).items()}


def _offsets(said: str) -> dict[Source, int]:
    parts = {part: OFFSET.fullmatch(part.strip()) for part in said.split(",")}
    wrong = [part for part, found in parts.items() if found is None]
    if wrong:
        raise SettingsError(f"--from names {', '.join(wrong)}: it takes topic/partition=offset, for one impressions/0=1200,clicks/0=96.")
    return {Source(found[1], int(found[2])): int(found[3]) for found in parts.values() if found}


def _table(file: Path) -> Mapping[str, object]:
    try:
        table = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"--from names {file}, which is no JSON ({error}). It takes an object of topic/partition: offset.") from error
    if not isinstance(table, dict):
        raise SettingsError(f'--from names {file}, which holds no object. It takes {{"impressions/0": 1200, "clicks/0": 96}}.')
    return table


def _moment_ms(said: str) -> int:
    """Milliseconds of a date or a moment, UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(said)
    except ValueError as error:
        raise SettingsError(
            f"--from is {said!r}: it takes earliest, a moment as 2026-11-20 or 2026-11-20T08:30, topic/partition=offset,... or a JSON file."
        ) from error
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
