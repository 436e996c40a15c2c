"""What a table needs besides rows: few files, days in order once they are over, and nothing older than it may be.

All of it rewrites what is there and adds nothing, so the sink goes on writing meanwhile. Where another writer comes in between, Delta
refuses the rewriting, and the next look does it. What is rewritten or expired is deleted from the disk a week later: until then the table
can be read as it was.
"""

import logging
from datetime import date, timedelta

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from schemas.columnar.lake import Z_ORDER, columns, looked_up, table_uri
from schemas.topics import Topic
from streams.lake.table import EPOCH, WRITTEN, LakePlace, trouble

#: Files of a day above those that its size asks for, before they are put together. More makes readers open more, fewer writes rows more
#: often.
FILES_MAX = 20
#: How large files become (bytes). Larger are fewer to open, and are sorted out less finely by what they hold.
FILE_BYTES = 128 << 20
#: What putting a day in order may hold in memory (bytes) before it goes to the disk.
SORT_BYTES_MAX = 256 << 20

log = logging.getLogger("millstream.lake")


def keep(lake: LakePlace, topic: Topic, today: date, days_kept: int | None = None) -> None:
    """Look after a table once. days_kept: rows of earlier days are removed; None keeps all. Raises LogError."""
    uri = table_uri(lake.uri, topic)
    with trouble(uri):
        table = DeltaTable(uri, storage_options=dict(lake.options))
        try:
            _compact(table)
            _order(table, topic, today)
            if days_kept is not None:
                table.delete(f"day < '{today - timedelta(days=days_kept)}'")
        except CommitFailedError as error:
            log.info("%s was written to while it was looked after, and is looked after again later: %s", uri, error)


def _days(table: DeltaTable) -> pl.DataFrame:
    """Day, count of files, their bytes; earliest first."""
    files = pl.DataFrame(table.get_add_actions(flatten=True)).select(pl.col("partition.day").alias("day"), "size_bytes")
    return files.group_by("day").agg(pl.len().alias("files"), pl.sum("size_bytes")).sort("day")


def _compact(table: DeltaTable) -> None:
    """Put small files of a day together."""
    for day, files_count, bytes_count in _days(table).iter_rows():
        if files_count > FILES_MAX + bytes_count // FILE_BYTES:
            table.optimize.compact([("day", "=", str(day))], target_size=FILE_BYTES, max_concurrent_tasks=1, writer_properties=WRITTEN)


def _order(table: DeltaTable, topic: Topic, today: date) -> None:
    """Put the rows of days that are over in order of what they are looked up by, once a day; then delete what is not needed any more."""
    over = [day for day in _days(table)["day"][:-1] if day < today]
    done = table.transaction_version(Z_ORDER)
    due = [day for day in over if done is None or (day - EPOCH).days > done]
    for day in due:
        table.optimize.z_order(
            [looked_up(topic)],
            [("day", "=", str(day))],
            target_size=FILE_BYTES,
            max_concurrent_tasks=1,
            max_spill_size=SORT_BYTES_MAX,
            writer_properties=WRITTEN,
        )
    if due:
        # Optimising takes no transaction of ours: killed in between, these days are put in order once more.
        nothing = pl.DataFrame(schema=columns(topic))
        mark = Transaction(Z_ORDER, (due[-1] - EPOCH).days)
        write_deltalake(table, nothing, mode="append", schema_mode="merge", commit_properties=CommitProperties(app_transactions=[mark]))
        table.vacuum(dry_run=False, full=True)
