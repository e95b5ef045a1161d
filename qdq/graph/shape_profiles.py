"""Optimization profiles: the shapes that an engine is built for, which rules about shapes evaluate.

The user passes them. The batch that calibration runs does not affect them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from qdq.arguments import list_items, require_type
from qdq.errors import UsageError, did_you_mean
from qdq.graph.index import GraphIndex
from qdq.graph.shape_inference import Dims

Shape = tuple[int, ...]

#: The shapes of a profile that are written: one for all three, or three.
_SHAPE_COUNTS = (1, 3)

#: A size is stored in 64 bits (ONNX, TensorShapeProto).
_MOST_DIGITS = 18


class Profile(msgspec.Struct, frozen=True, order=True):
    """The smallest, usual and largest shape of one input, as in TensorRT's profiles."""

    #: The name of the input.
    input: str
    #: The smallest shape.
    min: Shape
    #: The shape to optimize for.
    opt: Shape
    #: The largest shape.
    max: Shape

    def __str__(self) -> str:
        shapes = [self.min, self.opt, self.max]
        if self.min == self.opt == self.max:
            shapes = [self.opt]
        return f"{self.input}={'/'.join(map(_format_shape, shapes))}"


#: The forms in which the library's functions take profiles.
ProfilesLike = Profile | str | Iterable[Profile | str]

_ADVICE = "texts such as 'image=1x3x224x224', or qdq.Profile"


def to_profiles(profiles: ProfilesLike) -> tuple[Profile, ...]:
    """Return profiles; texts are parsed. Raises UsageError for anything else."""
    items = list_items(profiles, (Profile, str), "profiles", _ADVICE)
    return tuple(item if isinstance(item, Profile) else parse_profile(item) for item in items)


def parse_profile(text: str) -> Profile:
    """Return the profile of ``INPUT=MIN/OPT/MAX`` or ``INPUT=SHAPE``.

    Each shape is written as in ``1x3x224x224``.
    Raises UsageError for another form, and where the three are not in order.
    """
    require_type(text, str, "profile", _ADVICE)
    name, _, shapes_text = text.rpartition("=")
    shapes = [_parse_shape(shape_text) for shape_text in shapes_text.split("/")]
    is_valid = name and len(shapes) in _SHAPE_COUNTS
    if not is_valid or any(0 in shape for shape in shapes):
        raise UsageError(
            f"--shapes {text!r}: the value is not a profile. Write the input's name and sizes, "
            "such as image=1x3x224x224, or three shapes as min/opt/max."
        )
    if len(shapes) == 1:
        return Profile(name, shapes[0], shapes[0], shapes[0])
    low, usual, high = shapes
    if not (_is_within(low, usual) and _is_within(usual, high)):
        raise UsageError(
            f"--shapes {text!r}: the three shapes are not in order. Write as many sizes in each, "
            "with no size of min above opt and none of opt above max."
        )
    return Profile(name, low, usual, high)


def _parse_shape(text: str) -> Shape:
    """Return the sizes of a shape, 0 for those that are not positive integers of 64 bits."""
    sizes = []
    for size in text.split("x"):
        if size.isdecimal() and len(size) <= _MOST_DIGITS:
            sizes.append(int(size))
        else:
            sizes.append(0)
    return tuple(sizes)


def _is_within(shape: Shape, limit: Shape) -> bool:
    """Whether a shape has the rank of another and no larger size."""
    if len(shape) != len(limit):
        return False
    sizes = zip(shape, limit, strict=True)
    return all(size <= most for size, most in sizes)


def optimal_shapes(profiles: Iterable[Profile]) -> dict[str, Shape]:
    """Return the usual shape of each input."""
    return {profile.input: profile.opt for profile in profiles}


def extreme_shapes(profiles: Iterable[Profile]) -> dict[str, dict[str, Shape]]:
    """Return the shapes of all inputs at ``min`` and ``max``, where these are not ``opt``."""
    profiles = tuple(profiles)
    usual = optimal_shapes(profiles)
    lowest = {profile.input: profile.min for profile in profiles}
    highest = {profile.input: profile.max for profile in profiles}
    extremes = {}
    if lowest != usual:
        extremes["min"] = lowest
    if highest != usual:
        extremes["max"] = highest
    return extremes


def require_shapes(index: GraphIndex, shapes: Mapping[str, Shape]) -> None:
    """Raise UsageError for shapes of inputs that the model lacks, or that do not fit them."""
    model_name = index.source.name
    for name, shape in shapes.items():
        if name not in index.inputs:
            known = ", ".join(index.inputs)
            raise UsageError(
                f"{model_name}: --shapes names no input {name!r}; "
                f"its inputs are {known}{did_you_mean(name, index.inputs)}"
            )
        declared = index.shape(name)
        if declared is not None and not _fits(shape, declared):
            shape_text = _format_shape(shape)
            declared_text = _format_shape(declared)
            raise UsageError(
                f"{model_name}: --shapes {name}={shape_text} does not fit the input, "
                f"whose shape is {declared_text}. Pass a shape that fits it."
            )


def _fits(shape: Shape, declared: Dims) -> bool:
    if len(shape) != len(declared):
        return False
    sizes = zip(shape, declared, strict=True)
    return all(limit in (None, size) for size, limit in sizes)


def _format_shape(shape: Iterable[int | None]) -> str:
    sizes = ["?" if size is None else str(size) for size in shape]
    return "x".join(sizes)
