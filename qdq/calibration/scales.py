"""Scales of a plan's pairs: records and their file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from qdq.calibration.shared_scales import SharedRange
from qdq.errors import PlanError, first_line
from qdq.planning.plan_file import read_plan_bytes
from qdq.quantizer import Quantizer
from qdq.ranges.given_ranges import GivenSummary


def read_scales(path: Path) -> Scales:
    """Return the scales in a file; raises PlanError naming the file and what is wrong in it."""
    try:
        return msgspec.json.decode(read_plan_bytes(path), type=Scales)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise PlanError(
            f"{path}: not a scales file that qdq can read: {first_line(error)}; make one with 'qdq calibrate'"
        ) from error


def scales_to_json(scales: Scales) -> bytes:
    """Return scales as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(scales), indent=1) + b"\n"


class PairScale(msgspec.Struct, frozen=True):
    """The scales of one pair: one, or one for each channel along the quantizer's axis."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    quantizer: Quantizer
    scales: tuple[float, ...]


class OutlierTensor(msgspec.Struct, frozen=True):
    """A tensor whose largest value lies far beyond the range that its method chose."""

    tensor: str
    #: The largest absolute value seen.
    amax: float
    #: What it is clipped at.
    clipped_at: float


class Scales(msgspec.Struct, frozen=True):
    """All scales of a plan, and what they were computed from."""

    #: `Plan.key` of the plan they belong to.
    plan: str
    method: str
    data: str
    samples: int
    by_pair: tuple[PairScale, ...]
    #: Tensors that held only zeros and got the harmless range.
    dead: tuple[str, ...] = ()
    #: How many entries one sample held, as ``8`` or ``1 to 8``; empty where that is not known.
    batch: str = ""
    #: Tensors that were seen to reach `OUTLIERS` times their range or more.
    outliers: tuple[OutlierTensor, ...] = ()
    #: Tensors that have the range of their scale group.
    shared: tuple[SharedRange, ...] = ()
    #: What became of ranges that came from elsewhere; None where there were none.
    given_ranges: GivenSummary | None = None
