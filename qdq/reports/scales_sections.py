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
    """Return what the scales were computed from."""
    source = f"{scales.method}, no data was run"
    if scales.data:
        samples = f"{scales.samples} samples{_batch_suffix(scales.batch)}"
        source = f"{scales.method} over {samples} of {scales.data}"
    lines = [f"{source}: {len(scales.by_pair)} pairs"]
    if scales.data == NOISE:
        lines.append("calibrated on noise: the scales mean nothing for real inputs")
    for tensor in scales.dead:
        lines.append(f"{tensor} held only zeros; its scale is a placeholder")
    lines += [_outlier_line(outlier) for outlier in scales.outliers]
    lines += given_lines(scales)
    lines += shared_lines(scales.shared)
    return Section("Calibration", tuple(lines))


def ranges_summary(ranges: Ranges) -> Section:
    """Return what was observed."""
    samples = f"{ranges.samples} samples{_batch_suffix(ranges.batch)}"
    line = f"{len(ranges.by_tensor)} tensors over {samples} of {ranges.data}"
    if ranges.missing:
        parts = ", ".join(map(str, ranges.parts))
        line = f"{line}, parts {parts} of {ranges.of}"
    return Section("Ranges", (line,))


def given_lines(scales: Scales) -> list[str]:
    """Return how the given ranges were used, and which of them the scale groups widened."""
    summary = scales.given_ranges
    if summary is None:
        return []
    name = summary.name
    renamed = [f"{t.tensor} from {t.source_tensor}" for t in summary.tensors if t.source_tensor]
    missing_use = "calibrated" if scales.data else "constant: their largest value"
    lines = [f"{name} gives the ranges of {len(summary.tensors)} tensors"]
    lines += _list_tensors("take the range of a tensor that holds all of their values", renamed)
    lines += _list_tensors(f"not in {name}, and {missing_use}", summary.missing)
    lines += _list_tensors(f"in {name}, but not in the graph", summary.unknown)
    # The changes of a model's own pairs are reported pair by pair.
    if not name.endswith(OWN_RANGES_NAME):
        lines += _list_tensors(f"in {name}, but not quantized by the plan", summary.unplanned)
    lines += [_widened_line(shared) for shared in widened_ranges(scales)]
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
    line = (
        f"{len(shared_ranges)} tensors have the range of their scale group, "
        f"{len(wider) or 'none'} of them a larger one than without it"
    )
    if len(wider) > _MOST_SHARED:
        line = f"{line}; these lose most"
    return [line, *map(_shared_line, wider[:_MOST_SHARED])]


def _shared_line(shared: SharedRange) -> str:
    ratio = shared.amax / shared.own_amax
    return (
        f"{shared.tensor}: {shared.own_amax:.4g} alone, {shared.amax:.4g} shared, "
        f"{ratio:.3g} times ({shared.bits:.2g} bits)"
    )


def _widened_line(shared: SharedRange) -> str:
    return (
        f"{shared.tensor}: the given range is {shared.own_amax:.4g}; its scale group has "
        f"{shared.amax:.4g}"
    )


def _outlier_line(outlier: OutlierTensor) -> str:
    ratio = outlier.amax / outlier.clipped_at
    return (
        f"{outlier.tensor} reaches {outlier.amax:.3g} and is clipped at "
        f"{outlier.clipped_at:.3g}: its outliers are {ratio:.0f} times its range"
    )


def _find_named_tensors(summary: GivenSummary) -> set[str]:
    """Return the tensors whose range was given under their name."""
    return {applied.tensor for applied in summary.tensors if not applied.source_tensor}


def _list_tensors(fact: str, names: Sequence[str]) -> list[str]:
    """Return a line about some tensors; none where there are none."""
    return [f"{len(names)} {fact}: {join_names(names)}"] if names else []


def _batch_suffix(batch: str) -> str:
    return "" if batch in ("", "1") else f" of batch {batch}"
