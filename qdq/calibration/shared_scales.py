"""Scale groups: tensors that share one range, and the resolution that each of them loses.

The range of a group is the largest range of its members, given ranges included. TensorRT joins
such tensors without arithmetic only where their scales are equal. The largest range is the only one
that clips none of them more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product

import msgspec

from qdq.planning.decisions import ScaleGroup

#: Ranges by qualified tensor and element type.
Amax = Mapping[tuple[str, str], float]


class SharedRange(msgspec.Struct, frozen=True):
    """A tensor that has the range of its scale group."""

    #: The tensor, after the path of its subgraph.
    tensor: str
    #: The element type that it is quantized to.
    dtype: str
    #: The range chosen or given for this tensor alone; 0 for a tensor of zeros.
    own_amax: float
    #: The range of the group.
    amax: float

    @property
    def bits(self) -> float:
        """The lost resolution: log2 of the group's range over the tensor's; 0 for zeros."""
        return math.log2(self.amax / self.own_amax) if self.own_amax > 0.0 else 0.0


def share_ranges(groups: Iterable[ScaleGroup], amax: Amax) -> tuple[Amax, tuple[SharedRange, ...]]:
    """Return the ranges with one range per scale group, and a record of each shared range."""
    ranges = dict(amax)
    shared: list[SharedRange] = []
    dtypes = sorted({dtype for _, dtype in amax})
    for group, dtype in product(groups, dtypes):
        members = {}
        for tensor in group.tensors:
            own_amax = ranges.get((tensor, dtype))
            if own_amax is not None:
                members[tensor] = own_amax
        group_amax = max(members.values(), default=0.0)
        sharing = _find_sharing_members(group, members, group_amax)
        for tensor in sharing:
            ranges[tensor, dtype] = group_amax
            if len(sharing) > 1:
                record = SharedRange(tensor, dtype, members[tensor], group_amax)
                shared.append(record)
    return ranges, tuple(shared)


def _find_sharing_members(
    group: ScaleGroup, members: Mapping[str, float], group_amax: float
) -> list[str]:
    """Return the members that take the group's range.

    A member keeps its range where that is smaller by more than the group's ratio.
    """
    least_amax = 0.0
    if group.ratio_at_most:
        least_amax = group_amax / group.ratio_at_most
    sharing = []
    for tensor, amax in members.items():
        if amax >= least_amax or amax == 0.0:
            sharing.append(tensor)
    return sharing
