"""What does somebody see who waits for the model to load? A bar on a terminal, a line for each stage elsewhere."""

import sys
from types import TracebackType
from typing import Protocol, TextIO

from engine.link import Progress


class Display(Protocol):
    """Shows how the start goes. A context: what it drew is cleaned up when it is left."""

    def show(self, progress: Progress) -> None:
        """The latest report; its stage may be the same as before or a new one."""

    def __enter__(self) -> "Display": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lines:
    """A line when a stage begins, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = ""

    def show(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            print(f"penstock: {progress.stage}", file=self._stream, flush=True)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class Bar:
    """A bar for the stage at hand, for terminals. Nothing of it remains."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._stage = "starting"

    def show(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._bar.reset(self._task, description=progress.stage)
        self._bar.update(self._task, completed=progress.done, total=progress.total or None)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def display(stream: TextIO = sys.stderr) -> Display:
    """The display that fits ``stream``."""
    return Bar(stream) if stream.isatty() else Lines(stream)
