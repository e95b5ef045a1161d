"""The ranges that a second look may change, and the other ranges that it tries for each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from qdq.calibration.methods import parse_method
from qdq.calibration.scales import Scales
from qdq.planning.decisions import Plan
from qdq.quantizer import ELEMENT_TYPES, ElementType
from qdq.ranges.tensor_ranges import TensorRange
from qdq.recovery.scaled_session import PairKey

#: Factors of the present range.
_FACTORS = (0.3, 0.4, 0.55, 0.7, 0.85, 1.2, 1.45)

#: The other methods, whose choices are tried too.
_METHODS = tuple(map(parse_method, ("auto", "mse", "percentile", "entropy", "max")))

#: Candidates are at least this factor apart, also from the present range.
_LEAST_DISTANCE = 1.08


class SharedPairs(msgspec.Struct, frozen=True):
    """Pairs that have one scale: those of a scale group, or of one tensor."""

    keys: tuple[PairKey, ...]
    dtype: str
    scale: float

    @property
    def element(self) -> ElementType:
        """The type of the quantized values."""
        return ELEMENT_TYPES[self.dtype]

    @property
    def amax(self) -> float:
        """The range."""
        return self.scale * self.element.largest

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors, after the paths of their bodies."""
        return tuple(dict.fromkeys(tensor for tensor, _ in self.keys))

    def scales_at(self, amax: float) -> dict[PairKey, float]:
        """Return the scale of every pair for another range."""
        return dict.fromkeys(self.keys, amax / self.element.largest)


def list_shared_pairs(plan: Plan, scales: Scales) -> list[SharedPairs]:
    """Return the pairs of activations by the scale that they share, in plan order.

    Pairs of tensors with a given range, and of tensors that hold only zeros, are left out.
    """
    fixed = set(scales.dead)
    if scales.given_ranges is not None:
        fixed.update(scales.given_ranges.amax)
    group_of: dict[str, int] = {}
    for number, group in enumerate(plan.scale_groups):
        group_of.update(dict.fromkeys(group.tensors, number))
    keys_by_scale: dict[tuple[object, str, float], list[PairKey]] = {}
    for pair in scales.by_pair:
        if not pair.quantizer.calibrated:
            continue
        origin = group_of.get(pair.tensor, pair.tensor)
        shared_by = (origin, pair.quantizer.dtype, pair.scales[0])
        keys_by_scale.setdefault(shared_by, []).append((pair.tensor, pair.quantizer))
    shared: list[SharedPairs] = []
    for (_, dtype, scale), keys in keys_by_scale.items():
        if fixed.isdisjoint(tensor for tensor, _ in keys):
            shared.append(SharedPairs(tuple(keys), dtype, scale))
    return shared


def list_candidates(pairs: SharedPairs, ranges: Mapping[str, TensorRange]) -> list[float]:
    """Return other ranges for some pairs, ascending: other methods' choices and factors.

    None of them is beyond the largest observed value, apart from the type's headroom. Factors go
    down to 0.3, other methods' choices may be smaller.
    """
    element = pairs.element
    observed = [ranges[tensor] for tensor in pairs.tensors if tensor in ranges]
    largest = max((item.amax for item in observed), default=pairs.amax) * element.headroom
    requested = [pairs.amax * factor for factor in _FACTORS]
    highest = min(max(requested), largest)
    for method in _METHODS:
        choices = [method.amax(item, element) for item in observed]
        requested.append(max(choices, default=0.0))
    candidates: list[float] = []
    for amax in sorted(requested, reverse=True):
        others = [pairs.amax, *candidates[-1:]]
        if 0.0 < amax <= highest and all(_is_apart(amax, other) for other in others):
            candidates.append(amax)
    return candidates[::-1]


def _is_apart(first: float, second: float) -> bool:
    return abs(math.log(first / second)) >= math.log(_LEAST_DISTANCE)
