"""Sections about scales: what they were computed from, given ranges, outliers, shared ranges."""

from __future__ import annotations

from collections.abc import Sequence

from qdq.calibration.scales import OutlierTensor, Scales
from qdq.calibration.shared_scales import SharedRange
from qdq.data.feeds import NOISE
from qdq.ranges.given_ranges import GivenSummary
from qdq.ranges.model_ranges import OWN_RANGES_NAME
from qdq.ranges.tensor_ranges import Ranges
from qdq.reports.sections import Section, join_names

#: How many tensors are shown that lost resolution to their scale group.
_MOST_SHARED = 5


def scales_summary(scales: Scales) -> Section:
    """Return the method and data of the scales, and the tensors that need attention."""
    source = f"{scales.method}, no data was run"
    if scales.data:
        samples = _describe_samples(scales.samples, scales.batch)
        source = f"{scales.method} over {samples} of {scales.data}"
    count = len(scales.by_pair)
    lines = [f"{source}: {count} pairs"]
    if scales.data == NOISE:
        lines.append("calibrated on noise: the scales mean nothing for real inputs")
    for tensor in scales.dead:
        lines.append(f"{tensor} held only zeros; its scale is a placeholder")
    for tensor in scales.unfilled or ():
        lines.append(f"no sample filled {tensor}; the nodes that read it stay in float")
    lines += map(_outlier_line, scales.outliers)
    lines += given_lines(scales)
    lines += shared_lines(scales.shared)
    return Section("Calibration", tuple(lines))


def ranges_summary(ranges: Ranges) -> Section:
    """Return the number of observed tensors and samples."""
    count = len(ranges.by_tensor)
    samples = _describe_samples(ranges.samples, ranges.batch)
    line = f"{count} tensors over {samples} of {ranges.data}"
    if ranges.missing:
        parts = ", ".join(map(str, ranges.parts))
        line += f", parts {parts} of {ranges.of}"
    return Section("Ranges", (line,))


def given_lines(scales: Scales) -> list[str]:
    """Return how the given ranges were used, and which of them the scale groups widened."""
    summary = scales.given_ranges
    if summary is None:
        return []
    name = summary.name
    count = len(summary.tensors)
    renamed = []
    for applied in summary.tensors:
        if applied.source_tensor:
            renamed.append(f"{applied.tensor} from {applied.source_tensor}")
    missing_use = "calibrated" if scales.data else "constant: their largest value"
    lines = [f"{name} gives the ranges of {count} tensors"]
    lines += _list_tensors("take the range of a tensor that holds all of their values", renamed)
    lines += _list_tensors(f"not in {name}, and {missing_use}", summary.missing)
    lines += _list_tensors(f"in {name}, but not in the graph", summary.unknown)
    # The changes of a model's own pairs are reported pair by pair.
    if not name.endswith(OWN_RANGES_NAME):
        lines += _list_tensors(f"in {name}, but not quantized by the plan", summary.unplanned)
    lines += map(_widened_line, widened_ranges(scales))
    return lines


def widened_ranges(scales: Scales) -> list[SharedRange]:
    """Return the tensors whose given range is smaller than that of their scale group.

    Tensors that took the range of another tensor are left out.
    """
    if scales.given_ranges is None:
        return []
    named = _find_named_tensors(scales.given_ranges)
    widened = []
    for shared in scales.shared:
        if shared.tensor in named and shared.own_amax < shared.amax:
            widened.append(shared)
    return widened


def shared_lines(shared_ranges: Sequence[SharedRange]) -> list[str]:
    """Return how many tensors share a range, and which of them lost most resolution."""
    if not shared_ranges:
        return []
    wider = [shared for shared in shared_ranges if shared.bits > 0.0]
    wider.sort(key=lambda shared: -shared.bits)
    count = len(shared_ranges)
    wider_count = len(wider) or "none"
    line = (
        f"{count} tensors have the range of their scale group, {wider_count} of them a larger "
        "one than without it"
    )
    if len(wider) > _MOST_SHARED:
        line += "; these lose most"
    return [line, *map(_shared_line, wider[:_MOST_SHARED])]


def _shared_line(shared: SharedRange) -> str:
    own_amax = shared.own_amax
    amax = shared.amax
    ratio = amax / own_amax
    bits = shared.bits
    ranges = f"{own_amax:.4g} alone, {amax:.4g} shared"
    return f"{shared.tensor}: {ranges}, {ratio:.3g} times ({bits:.2g} bits)"


def _widened_line(shared: SharedRange) -> str:
    own_amax = shared.own_amax
    amax = shared.amax
    return f"{shared.tensor}: the given range is {own_amax:.4g}; its scale group has {amax:.4g}"


def _outlier_line(outlier: OutlierTensor) -> str:
    amax = outlier.amax
    clipped_at = outlier.clipped_at
    ratio = amax / clipped_at
    clipping = f"reaches {amax:.3g} and is clipped at {clipped_at:.3g}"
    return f"{outlier.tensor} {clipping}: its outliers are {ratio:.0f} times its range"


def _find_named_tensors(summary: GivenSummary) -> set[str]:
    """Return the tensors whose range was given under their name."""
    return {applied.tensor for applied in summary.tensors if not applied.source_tensor}


def _list_tensors(fact: str, names: Sequence[str]) -> list[str]:
    """Return a line about some tensors; none where there are none."""
    if not names:
        return []
    count = len(names)
    tensors = join_names(names)
    return [f"{count} {fact}: {tensors}"]


def _describe_samples(count: int, batch: str) -> str:
    """Return the number of samples, and their batch where it is not 1."""
    if batch in ("", "1"):
        return f"{count} samples"
    return f"{count} samples of batch {batch}"
