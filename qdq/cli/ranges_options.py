"""Options of how ranges are chosen, read and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from qdq.calibration.methods import DEFAULT_METHOD, WEIGHT_METHODS, Method, parse_method
from qdq.calibration.range_sources import read_given
from qdq.cli.data_options import DataOptions
from qdq.cli.observing_options import OBSERVING_OPTIONS
from qdq.cli.options import FILE, OUTPUT_FILE, collect_options, is_on_command_line
from qdq.errors import UsageError
from qdq.ranges.known_ranges import KnownRanges
from qdq.ranges.tensor_ranges import Ranges

#: Options that have no effect where no samples are run.
_SAMPLE_OPTIONS = (
    *OBSERVING_OPTIONS,
    "save_ranges",
    "batch",
    "min_snr",
    "min_cosine",
    "min_top1",
)

#: The method for weights that needs samples.
_SHIFT = "shift"


class MethodOptions(msgspec.Struct, frozen=True):
    """How the ranges of activations and the scales of weights are chosen."""

    method: str
    weights: str | None

    def parse(self) -> Method:
        """Return the method; raises UsageError for an unknown one."""
        return parse_method(self.method, self.weights)


#: Adds ``--method`` and ``--weights``, which the command receives as one `method`.
method_options = collect_options(
    MethodOptions,
    click.option(
        "--method",
        default=DEFAULT_METHOD,
        show_default=True,
        help="Method that chooses ranges: auto, mse, entropy, percentile, percentile:99 or max.",
    ),
    click.option(
        "--weights",
        type=click.Choice(WEIGHT_METHODS),
        help="Method that chooses scales of weights. shift, the default except with "
        "--method max, changes the outputs least.",
    ),
    name="method",
)

#: Adds ``--ranges``.
ranges_option = click.option(
    "--ranges",
    type=FILE,
    metavar="FILE",
    help="Ranges to use instead of calibrated ones: a YAML or JSON file, a TensorRT calibration "
    "cache, scales, a quantized model, or observed ranges.",
)

#: Adds ``--save-ranges``.
save_ranges_option = click.option(
    "--save-ranges",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Also write the observed ranges, to choose scales from them again later.",
)


def read_known_ranges(
    ctx: click.Context, path: Path | None, data: DataOptions
) -> KnownRanges | None:
    """Return the ranges in the file of ``--ranges``, None without it.

    Raises UsageError for options that need samples where none are run, and for samples where the
    ranges were observed.
    """
    if path is None:
        return None
    ranges = read_given(path)
    is_observed = isinstance(ranges, Ranges)
    if data.source is not None:
        if is_observed:
            raise UsageError(
                f"{path}: these ranges were observed earlier, so no samples are run. "
                "Drop --data/--images, or add ranges with 'qdq ranges merge'."
            )
        return ranges
    _refuse_sample_options(ctx, _SAMPLE_OPTIONS)
    if not is_observed:
        _refuse_sample_options(ctx, ("method", "weights"))
    return ranges


def _refuse_sample_options(ctx: click.Context, names: Sequence[str]) -> None:
    """Raise UsageError for options on the command line that have no effect without samples."""
    for name in names:
        if not is_on_command_line(ctx, name):
            continue
        option = f"--{name.replace('_', '-')}"
        if name == "weights":
            if ctx.params[name] != _SHIFT:
                continue
            option = f"{option} {_SHIFT}"
        raise UsageError(
            f"{option} applies to samples, and --ranges alone runs none. "
            f"Pass --data or --images too, or drop {option}."
        )


def list_observed_files(path: Path | None, ranges: KnownRanges | None) -> tuple[Path, ...]:
    """Return the file of ``--ranges`` if it holds observed ranges.

    Observed ranges must be of the same model, and an error about them names the file.
    """
    if path is not None and isinstance(ranges, Ranges):
        return (path,)
    return ()
