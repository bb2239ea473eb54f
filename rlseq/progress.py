"""A progress bar for long work: one line that is redrawn in a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressBar:
    """Shows what is done, a note such as the loss, the speed and the time left.

    Args:
        label: what is going on.
        total: units of work; None where it is not known.
        done: units that were done before (a resumed run).
        quiet: show nothing.
    """

    def __init__(self, label: str, total: int | None, *, done: int = 0, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, stderr=True)
        self._label, self._total, self._first, self._done = label, total, done, done
        self._began, self._tenth = time.perf_counter(), self._tenths(done)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            expand=True,
        )
        self._task = self._progress.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        """Shows the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the bar's last state on the screen, complete where the work ended early but well."""
        if kind is None:
            self._progress.update(self._task, total=self._done, completed=self._done)
        self._progress.stop()

    def update(self, done: int, note: str) -> None:
        """Redraws: `done` units, and a short note."""
        self._done = done
        if self._total is not None and done > self._first:
            left = (self._total - done) * (time.perf_counter() - self._began) / (done - self._first)
            note = f"{note}  {int(left) // 60}:{int(left) % 60:02d} left"
        count = f"{done}" if self._total is None else f"{done}/{self._total}"
        self._progress.update(self._task, completed=done, note=f"{count}  {note}")
        tenth = self._tenths(done)
        if not self._console.is_terminal and tenth > self._tenth:
            self._tenth = tenth
            self._console.print(f"{self._label}  {count}  {note}", highlight=False, markup=False, soft_wrap=True)

    def _tenths(self, done: int) -> int:
        return 10 * done // self._total if self._total else 0
