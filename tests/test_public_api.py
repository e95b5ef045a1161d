"""The names that users import: each is there, documented, and in the lists that say so."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import qdq

PUBLIC = {
    "Budget", "CastModel", "Finding", "Fixed", "FloatOptions", "GivenRanges", "Images", "Inspection", "Observing", "PairDiff", "Part", "Plan",
    "Profile", "QdqError", "Quantized", "Ranges", "Recovery", "Scales", "Sensitivity", "Source",
    "Subset", "Target", "Thresholds",
    "Validation", "__version__", "apply", "calibrate", "cast", "check", "diff", "explain", "fix",
    "given_by_hand", "inspect", "load", "load_rules", "measure_extremes", "measure_sensitivity", "merge", "misses", "observe", "parse_profile",
    "parse_target", "plan", "quantize", "read_given", "save", "strip", "validate",
}  # fmt: skip
#: The command line and its data are no library.
PACKAGES = sorted(
    module.name
    for module in pkgutil.iter_modules(qdq.__path__, "qdq.")
    if module.ispkg and module.name != "qdq.cli"
)


def test_the_public_names_are_these() -> None:
    assert set(qdq.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_resolves(name: str) -> None:
    assert getattr(qdq, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qdq.quantise  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_exactly_its_face(package: str) -> None:
    """`__all__` is sorted, resolves, and holds every name that `__init__` imports."""
    face = importlib.import_module(package)
    imported = {
        name
        for name, value in vars(face).items()
        if getattr(value, "__module__", "").startswith("qdq.") and not name.startswith("_")
    }

    assert face.__doc__
    assert len(set(face.__all__)) == len(face.__all__)
    assert imported <= set(face.__all__)
    assert all(hasattr(face, name) for name in face.__all__)
