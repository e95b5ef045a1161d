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
    """Return the scales in a file; raises PlanError for another file, with the reason."""
    try:
        return msgspec.json.decode(read_plan_bytes(path), type=Scales)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise PlanError(
            f"{path}: the file is not a scales file that qdq can read: {first_line(error)}. "
            "Write one with 'qdq calibrate'."
        ) from error


def scales_to_json(scales: Scales) -> bytes:
    """Return scales as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(scales), indent=1) + b"\n"


class PairScale(msgspec.Struct, frozen=True):
    """The scales of one pair."""

    #: The tensor, after the path of its subgraph.
    tensor: str
    quantizer: Quantizer
    #: One scale, or one per channel along the quantizer's axis.
    scales: tuple[float, ...]


class OutlierTensor(msgspec.Struct, frozen=True):
    """A tensor whose largest value is far outside the range that its method chose."""

    #: The tensor, after the path of its subgraph.
    tensor: str
    #: The largest absolute value observed.
    amax: float
    #: The value at which it is clipped.
    clipped_at: float


class Scales(msgspec.Struct, frozen=True):
    """All scales of a plan, and what they were computed from."""

    #: `Plan.key` of the plan that they belong to.
    plan: str
    #: The method, as `--method` and `--weights` state it; begins with `given` without data.
    method: str
    #: The data; empty where none was run.
    data: str
    #: How many samples were run.
    samples: int
    #: The scales of each pair, in plan order.
    by_pair: tuple[PairScale, ...]
    #: Tensors that held only zeros; their scale is a placeholder.
    dead: tuple[str, ...] = ()
    #: Entries per sample, as ``8`` or ``1 to 8``; empty where that is not known.
    batch: str = ""
    #: Tensors that reach 8 times their range or more.
    outliers: tuple[OutlierTensor, ...] = ()
    #: Tensors that have the range of their scale group.
    shared: tuple[SharedRange, ...] = ()
    #: Which ranges from another source were used; null where there are none.
    given_ranges: GivenSummary | None = None
    #: Tensors that no sample filled with values, so that the nodes which read them stay in float;
    #: absent where there are none.
    unfilled: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
