"""Options of the float type around the pairs."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration.range_sources import read_given
from qdq.cli.options import FILE, collect_options
from qdq.graph.float_types import FLOAT_TYPES
from qdq.pipeline.float_options import FloatOptions
from qdq.precision.cast_model import ENDS, SCALES
from qdq.ranges.tensor_ranges import Ranges

scales_option = click.option(
    "--scales",
    type=click.Choice(SCALES),
    default=SCALES[0],
    show_default=True,
    help="Scales of pairs: in the float type of the layers, or in FP32 with Casts around the "
    "pairs, for compilers that refuse 16-bit scales.",
)
io_option = click.option(
    "--io",
    type=click.Choice(ENDS),
    default=ENDS[0],
    show_default=True,
    help="Types of the model's inputs and outputs: keep them, or cast them too.",
)

float_type_option = click.option(
    "--float",
    "float_type",
    type=click.Choice(list(FLOAT_TYPES)),
    help="Type of what stays in float.  [default: fp16 for rtx:sm75, which builds no Gemm "
    "in FP32, else fp32]",
)

extremes_option = click.option(
    "--ranges",
    type=FILE,
    metavar="FILE",
    help="Ranges of activations, as 'qdq quantize --save-ranges' or a calibration cache has them: "
    "what overflows stays in FP32.",
)

#: Adds ``--float``, ``--scales`` and ``--io``, which the command receives as one `floats`.
float_options = collect_options(
    FloatOptions,
    float_type_option,
    scales_option,
    io_option,
    name="floats",
)


def read_extremes(path: Path | None) -> dict[str, float]:
    """Return the largest absolute value of each tensor with a range in a file; none without it."""
    if path is None:
        return {}
    known_ranges = read_given(path)
    if isinstance(known_ranges, Ranges):
        return {item.tensor: item.amax for item in known_ranges.by_tensor if item.seen}
    return {item.tensor: item.amax for item in known_ranges.by_tensor}
