"""Scale groups: tensors that get one range, and what each of them gives up for it.

A group's range is the largest of its members', given ones included. TensorRT joins such tensors without
arithmetic only where their scales are equal, and the largest range is the one at which none of them is clipped more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product

import msgspec

from qdq.planning.decisions import ScaleGroup

#: Ranges by tensor, as `Edge.read` gives it, and element type.
Amax = Mapping[tuple[str, str], float]


class SharedRange(msgspec.Struct, frozen=True):
    """A tensor that has the range of its group."""

    tensor: str
    #: The type that it is quantized to.
    dtype: str
    #: The range that was chosen or given for it alone; 0 for a tensor of zeros.
    own_amax: float
    #: The group's.
    amax: float

    @property
    def bits(self) -> float:
        """How much resolution it gives up: log2 of the group's range over its own, 0 for a tensor of zeros."""
        return math.log2(self.amax / self.own_amax) if self.own_amax > 0.0 else 0.0


def share_ranges(
    groups: Iterable[ScaleGroup], amax: Amax
) -> tuple[dict[tuple[str, str], float], tuple[SharedRange, ...]]:
    """Return the ranges with one for each scale group, and a record of every tensor that has its group's."""
    ranges, shared = dict(amax), list[SharedRange]()
    for group, dtype in product(groups, sorted({dtype for _, dtype in amax})):
        members = {
            tensor: ranges[tensor, dtype] for tensor in group.tensors if (tensor, dtype) in ranges
        }
        found = _largest(group, members)
        if len(found) > 1:
            shared += [
                SharedRange(tensor, dtype, members[tensor], value)
                for tensor, value in found.items()
            ]
        ranges.update({(tensor, dtype): value for tensor, value in found.items()})
    return ranges, tuple(shared)


def _largest(group: ScaleGroup, members: Mapping[str, float]) -> dict[str, float]:
    """Return the group's largest range for each member, but for those whose own is smaller by more than the group's ratio."""
    largest = max(members.values(), default=0.0)
    least = largest / group.ratio_at_most if group.ratio_at_most else 0.0
    return {tensor: largest for tensor, own in members.items() if own >= least or own == 0.0}
