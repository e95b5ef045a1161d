"""Checkpoints: files with the progress of a run, from which another run continues."""

from __future__ import annotations

import time
from pathlib import Path

from qdq.errors import DataError
from qdq.ranges.range_file import Checkpoint, read_checkpoint, write_ranges
from qdq.ranges.tensor_ranges import Ranges


class CheckpointWriter:
    """Writes a checkpoint at intervals."""

    def __init__(self, path: Path | None, run: str, resume: bool, interval: float) -> None:
        """`run` identifies everything that the ranges depend on.

        Raises DataError where `resume` meets a file without a checkpoint of this run.
        """
        self._path = path
        self._run = run
        self._interval = interval
        self._written = time.monotonic()
        #: The ranges of each pass; all are finished but, maybe, the last.
        self.passes: tuple[Ranges, ...] = ()
        if path is not None and resume and path.exists():
            self.passes = _read_passes(path, run)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if self._path is None:
            return False
        return time.monotonic() - self._written >= self._interval

    def finish(self, ranges: Ranges) -> None:
        """Add a pass that is finished."""
        self.passes = (*self.passes, ranges)
        if self.is_due:
            self.write()

    def write(self, *current: Ranges) -> None:
        """Write the ranges of the finished passes and of the current one."""
        if self._path is not None:
            write_ranges(self._path, Checkpoint(self._run, (*self.passes, *current)))
            self._written = time.monotonic()


def _read_passes(path: Path, run: str) -> tuple[Ranges, ...]:
    checkpoint = read_checkpoint(path)
    if checkpoint.run != run:
        raise DataError(
            f"{path}: the file is the checkpoint of another run: its model, plan, data or options "
            "differ. Pass the same ones or remove the file."
        )
    return checkpoint.passes
