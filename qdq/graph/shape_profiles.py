"""Optimization profiles: the shapes that an engine is built for, from which rules about shapes decide.

They are the user's to give and have nothing to do with the batch that calibration happens to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from qdq.errors import UsageError, did_you_mean
from qdq.graph.index import GraphIndex

Shape = tuple[int, ...]
_THREE = 3

#: A size is stored in 64 bits (ONNX, TensorShapeProto).
_MOST_DIGITS = 18


class Profile(msgspec.Struct, frozen=True, order=True):
    """The smallest, the usual and the largest shape of one input, as in TensorRT's optimization profiles."""

    input: str
    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        shapes = (self.opt,) if self.min == self.opt == self.max else (self.min, self.opt, self.max)
        return f"{self.input}={'/'.join('x'.join(map(str, shape)) for shape in shapes)}"


def parse_profile(text: str) -> Profile:
    """Return the profile that ``INPUT=MIN/OPT/MAX`` or ``INPUT=SHAPE`` names, each shape as in ``1x3x224x224``.

    Raises UsageError for another spelling, and where the three are not in order.
    """
    name, _, written = text.rpartition("=")
    shapes = [
        tuple(int(d) if d.isdecimal() and len(d) <= _MOST_DIGITS else 0 for d in shape.split("x"))
        for shape in written.split("/")
    ]
    if not name or len(shapes) not in (1, _THREE) or any(0 in shape for shape in shapes):
        raise UsageError(
            f"--shapes {text!r}: write the input's name and sizes, such as image=1x3x224x224, or three of them as min/opt/max"
        )
    low, usual, high = shapes * _THREE if len(shapes) == 1 else shapes
    if not len(low) == len(usual) == len(high) or any(
        not a <= b <= c for a, b, c in zip(low, usual, high, strict=True)
    ):
        raise UsageError(
            f"--shapes {text!r}: the three shapes need as many sizes each, none of min above opt and none of opt above max"
        )
    return Profile(name, low, usual, high)


def optimal_shapes(profiles: Iterable[Profile]) -> dict[str, Shape]:
    """Return the shape that each input usually has."""
    return {profile.input: profile.opt for profile in profiles}


def extreme_shapes(profiles: Iterable[Profile]) -> dict[str, dict[str, Shape]]:
    """Return the shapes of all inputs at ``min`` and at ``max``, where they differ from the usual ones."""
    profiles = tuple(profiles)
    ends = {"min": {p.input: p.min for p in profiles}, "max": {p.input: p.max for p in profiles}}
    return {end: shapes for end, shapes in ends.items() if shapes != optimal_shapes(profiles)}


def require_shapes(index: GraphIndex, shapes: Mapping[str, Shape]) -> None:
    """Raise UsageError for shapes of inputs that the model does not have, or that these cannot take."""
    for name, shape in shapes.items():
        if name not in index.inputs:
            raise UsageError(
                f"{index.source.name}: --shapes names no input {name!r}; its inputs are {', '.join(index.inputs)}{did_you_mean(name, index.inputs)}"
            )
        known = index.shape(name)
        if known is not None and (
            len(shape) != len(known)
            or any(d not in (None, given) for d, given in zip(known, shape, strict=True))
        ):
            spelled = "x".join("?" if d is None else str(d) for d in known)
            raise UsageError(
                f"{index.source.name}: --shapes {name}={'x'.join(map(str, shape))} does not fit the input, which is {spelled}"
            )
