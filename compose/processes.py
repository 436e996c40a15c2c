"""What `millstream` is as a process, which gives way as far as its verb may, and several processes of one work.

Several are started together, stopped together, and stopped when one of them dies, for a supervisor to begin anew.
"""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess

#: How far a verb gives way where cores are scarce, as nice(1) has it; the others do not. Requests have a deadline, events are only to be
#: fresh, and nobody waits for work on the past.
NICENESS = {"ingest": 5, "lake": 5, "train": 10, "replay": 10}

log = logging.getLogger("millstream.processes")


def command() -> int:
    """Run the verb that the command line names, in this process. Returns the exit code."""
    os.nice(NICENESS.get(sys.argv[1] if len(sys.argv) > 1 else "", 0))
    # Imported only now: that alone is more than a second of a core.
    from compose.cli import main  # noqa: PLC0415  # as said

    return main(sys.argv[1:])


def run(work: Callable[[int], None], count: int) -> int:
    """Run work(number) in so many processes until SIGTERM or SIGINT, which each of them gets as SIGTERM. Returns the exit code: 0, or not.

    work: can be pickled, for each process is an interpreter of its own; it ends by sys.exit where its exit code matters.
    """
    # Not forked: libraries of ours have threads, and no thread survives a fork.
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(number,), daemon=True) for number in range(count)]
    told: list[int] = []

    def stop(number: int, _: object) -> None:
        told.append(number)
        _terminate(processes)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for process in processes:
        process.start()
    if told:
        _terminate(processes)
    ended = connection.wait([process.sentinel for process in processes])
    first = next(process for process in processes if process.sentinel in ended)
    first.join()
    if not told:
        log.error("process %s of %s ended by itself, with %s: the others are stopped", processes.index(first), count, first.exitcode)
        _terminate(processes)
    for process in processes:
        process.join()
    if told:
        # One that did not listen for signals yet is ended by SIGTERM itself.
        return int(any(process.exitcode not in {0, -signal.SIGTERM} for process in processes))
    return max(first.exitcode or 0, 1)


def _terminate(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid:
            process.terminate()


if __name__ == "__main__":
    sys.exit(command())
