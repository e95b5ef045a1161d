"""The rule sets and kernel tables that are shipped with qdq."""

from __future__ import annotations

from pathlib import Path

from qdq.graph.pairs import stored_tensors
from qdq.graph.source import Source
from qdq.quantizer import E4M3, ELEMENT_TYPES

_PACKAGE = Path(__file__).parent.parent
DEFAULT_SET = "tensorrt"
KERNELS_FOLDER = "kernels"

#: The shipped rule set of FP8.
FP8_SET = "tensorrt-fp8"

#: The shipped rules about what stays in FP32 where the rest of a model is cast.
FLOAT_SET = "float"


def shipped_rules_folder() -> Path:
    """Return the folder of shipped rule sets and kernel tables.

    It is inside the wheel, or next to the package in a checkout.
    """
    in_wheel = _PACKAGE / "shipped_rules"
    if in_wheel.is_dir():
        return in_wheel
    return _PACKAGE.parent / "rules"


def shipped_sets() -> list[str]:
    """Return the names of the shipped rule sets, sorted."""
    names: list[str] = []
    for path in shipped_rules_folder().iterdir():
        if path.is_dir() and path.name != KERNELS_FOLDER:
            names.append(path.name)
    return sorted(names)


def default_rule_sets(source: Source) -> tuple[str, ...]:
    """Return the default rule sets for a model: those of FP8 where it has FP8 pairs."""
    tensors = stored_tensors(source.model.graph).values()
    stored_types = {tensor.data_type for tensor in tensors}
    if ELEMENT_TYPES[E4M3].code in stored_types:
        return (FP8_SET,)
    return (DEFAULT_SET,)
