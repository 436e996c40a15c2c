"""A parity report as a page for people: one HTML file that needs no other."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p { max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #dde3ea; text-align: right; white-space: nowrap; }
th { font-weight: 600; background: #f4f6f9; } th:first-child, td:first-child { text-align: left; }
.good { color: #18703a; } .bad { color: #b3261e; } .quiet, tr.quiet td { color: #66717f; } tr.bad td { color: #b3261e; font-weight: 600; }
"""
ENTITIES = (
    "Missing: only in the first. Extra: only in the second. Expired: one has let a record go that nothing touched for as long as it is "
    "kept. Looked again: differed at first, and was read again, so that events under way are told apart. Unsettled: one generation did "
    "not get to where the other was."
)
FEATURES = (
    "Difference: of two values, as a share of the larger. Missing and extra: only the first, only the second has a value. A feature that "
    "the two registries define differently is shown in grey and does not count."
)

LOGGED = "Recomputed from the events of each entity, which share nothing with how records are made. The log's value is the first."


def page(said: dict[str, Any]) -> str:
    """The page. said: as replay/parity/report.py makes it."""
    title = f"Parity of {said['first']} and {said['second']}"
    verdict = "<span class='good'>passed</span>" if said["passed"] else "<span class='bad'>did not pass</span>"
    facts = f"As of {_moment(said['as_of_ms'])}, made {_moment(said['made_at_ms'])}, {said['sample']:.1%} of the entities, "
    parts = [
        f"<h1>{escape(title)}: {verdict}</h1><p class='quiet'>{facts}tolerance {said['tolerance']:g}.</p>",
        *_section("Entities", ENTITIES, said["entities"]),
        *_section("Features", FEATURES, list(map(_counts, said["features"])), _classes(said["features"])),
        *_section("A sample of the second against the log", LOGGED, list(map(_counts, said["against_log"])), _classes(said["against_log"])),
        *_section("Furthest off", "", _worst(said)),
        *(
            f"<h2>Only in {said[side]}</h2><p>{', '.join(map(escape, said[f'only_in_{side}'])) or 'nothing'}</p>"
            for side in ("first", "second")
        ),
    ]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _section(title: str, said: str, lines: Sequence[dict[str, Any]], classes: Sequence[str] = ()) -> list[str]:
    """A table under its heading; nothing without lines."""
    if not lines:
        return []
    names = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in lines[0])
    rows = [
        f"<tr class='{of}'>{''.join(map(_cell, line.values()))}</tr>" for of, line in zip(classes or [""] * len(lines), lines, strict=True)
    ]
    return [f"<h2>{title}</h2><p class='quiet'>{said}</p><table><tr>{names}</tr>{''.join(rows)}</table>"]


def _classes(lines: Sequence[dict[str, Any]]) -> list[str]:
    """How each feature's line looks."""
    return [
        "quiet" if not line["same_definition"] else "bad" if line["mismatch"] + line["missing"] + line["extra"] else "" for line in lines
    ]


def _cell(value: object) -> str:
    shown = (
        f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)
    )
    return f"<td>{escape(shown)}</td>"


def _counts(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in {"worst", "same_definition"}}


def _worst(said: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"feature": line["name"], **worst} for part in ("features", "against_log") for line in said[part] for worst in line["worst"]]


def _moment(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
