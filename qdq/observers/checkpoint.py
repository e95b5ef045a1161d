"""Checkpoints: how far a run has come, kept in a file so that another can go on from there."""

from __future__ import annotations

import time
from pathlib import Path

from qdq.errors import DataError
from qdq.ranges.range_file import Checkpoint, read_checkpoint, write_ranges
from qdq.ranges.tensor_ranges import Ranges


class CheckpointWriter:
    """Writes a checkpoint every so often."""

    def __init__(self, path: Path | None, run: str, resume: bool, interval: float) -> None:
        """`run` identifies all that the ranges depend on. Raises DataError where `resume` finds a file that does not hold a checkpoint of this run."""
        self._path, self._run, self._interval = path, run, interval
        self._written = time.monotonic()
        #: What each pass has observed; all finished but, maybe, the last.
        self.passes: tuple[Ranges, ...] = ()
        if path is not None and resume and path.exists():
            found = read_checkpoint(path)
            if found.run != run:
                raise DataError(
                    f"{path}: is the checkpoint of another run: model, plan, data or options differ; run with the same ones, or remove it"
                )
            self.passes = found.passes

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._path is not None and time.monotonic() - self._written >= self._interval

    def finish(self, ranges: Ranges) -> None:
        """Take in a pass that is finished."""
        self.passes = (*self.passes, ranges)
        if self.is_due:
            self.write()

    def write(self, *current: Ranges) -> None:
        """Write what the finished passes and the current one have observed."""
        if self._path is not None:
            write_ranges(self._path, Checkpoint(self._run, (*self.passes, *current)))
            self._written = time.monotonic()
