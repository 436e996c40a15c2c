"""`millstream`, and `python -m compose`: the command (compose/cli.py) in a process of its own, which gives way as far as its verb may."""

import os
import sys

#: How far a verb gives way where cores are scarce, as nice(1) has it; the others do not. Requests have a deadline, events are only to be
#: fresh, and nobody waits for work on the past.
NICENESS = {"ingest": 5, "lake": 5, "train": 10, "replay": 10}


def command() -> int:
    """Run the verb that the command line names. Returns the exit code."""
    os.nice(NICENESS.get(sys.argv[1] if len(sys.argv) > 1 else "", 0))
    # Imported only now: that alone is more than a second of a core.
    from compose.cli import main  # noqa: PLC0415  # as said

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
