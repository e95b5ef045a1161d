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


def shipped_rules_folder() -> Path:
    """Return the folder of shipped rule sets and kernel tables: inside the wheel, or beside the package in a checkout."""
    inside = _PACKAGE / "shipped_rules"
    return inside if inside.is_dir() else _PACKAGE.parent / "rules"


def shipped_sets() -> list[str]:
    """Return the names of the rule sets that come with qdq."""
    return sorted(
        p.name for p in shipped_rules_folder().iterdir() if p.is_dir() and p.name != KERNELS_FOLDER
    )


def default_rule_sets(source: Source) -> tuple[str, ...]:
    """Return the shipped rule sets for the types that a model's pairs have: those of FP8 where it has any."""
    types = {tensor.data_type for tensor in stored_tensors(source.model.graph).values()}
    return (FP8_SET,) if ELEMENT_TYPES[E4M3].code in types else (DEFAULT_SET,)
