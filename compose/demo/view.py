"""What the demo shows while it runs: a table of figures and a progress bar; nothing with --json or without a terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

#: Redraws a second: more costs a core that the workers need.
REDRAWS_PER_S = 4


class View:
    """A live table of the demo's phase and figures."""

    def __init__(self, *, live: bool) -> None:
        """live: draw; else phases are lines on standard error."""
        self._console = Console(stderr=True)
        self._drawn = live and self._console.is_terminal
        self._live = Live(console=self._console, refresh_per_second=REDRAWS_PER_S, transient=True)
        self._phase = ""
        self._figures: dict[str, str] = {}
        self._shown_s = 0.0

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._drawn:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the terminal back."""
        if self._drawn:
            self._live.stop()

    def due(self) -> bool:
        """Whether it is time to draw again: figures that cost something are only made then."""
        return time.monotonic() - self._shown_s > 1 / REDRAWS_PER_S

    def show(self, phase: str, done: float, figures: dict[str, str] | None = None) -> None:
        """Show a phase, how far it is (0 to 1), and figures beside those shown before."""
        self._shown_s = time.monotonic()
        self._figures.update(figures or {})
        if self._drawn:
            self._live.update(Group(self._table(phase), ProgressBar(total=1.0, completed=done, width=60)))
        elif phase != self._phase:
            self._console.print(phase)
        self._phase = phase

    def _table(self, phase: str) -> Table:
        table = Table(title=f"Millstream: {phase}", title_justify="left", min_width=60)
        table.add_column("figure")
        table.add_column("now", justify="right")
        for name, value in self._figures.items():
            table.add_row(name, value)
        return table
