"""qdq: Q/DQ pairs where TensorRT wants them, in exported ONNX graphs, and the proof.

>>> import qdq
>>> result = qdq.quantize("model.onnx", "samples/")
>>> result.plan.placements[0].because
('weighted-inputs',)

Every function takes a path, an ``onnx.ModelProto`` or a graphsurgeon Graph, returns records and
models, prints nothing, and raises `QdqError` with one sentence for the user.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdq.calibration import Scales as Scales
    from qdq.calibration import calibrate as calibrate
    from qdq.calibration import observe as observe
    from qdq.checking import check as check
    from qdq.errors import QdqError as QdqError
    from qdq.explaining import explain as explain
    from qdq.feeds import Subset as Subset
    from qdq.findings import Finding as Finding
    from qdq.fixing import Fixed as Fixed
    from qdq.fixing import fix as fix
    from qdq.givenfiles import read_given as read_given
    from qdq.givenranges import GivenRanges as GivenRanges
    from qdq.givenranges import given_by_hand as given_by_hand
    from qdq.images import Images as Images
    from qdq.loading import Source as Source
    from qdq.loading import load as load
    from qdq.observing import Observing as Observing
    from qdq.pairdiff import PairDiff as PairDiff
    from qdq.pairdiff import diff as diff
    from qdq.planning import Plan as Plan
    from qdq.planning import plan as plan
    from qdq.profiles import Profile as Profile
    from qdq.profiles import parse_profile as parse_profile
    from qdq.quantizing import Quantized as Quantized
    from qdq.quantizing import quantize as quantize
    from qdq.quantizing import save as save
    from qdq.ranges import Part as Part
    from qdq.ranges import Ranges as Ranges
    from qdq.ranges import merge as merge
    from qdq.rewriting import apply as apply
    from qdq.rulefile import load_rules as load_rules
    from qdq.stripping import strip as strip
    from qdq.target import Target as Target
    from qdq.target import parse_target as parse_target
    from qdq.validation import Thresholds as Thresholds
    from qdq.validation import Validation as Validation
    from qdq.validation import misses as misses
    from qdq.validation import validate as validate

__version__ = "0.1.0"

#: Where each public name lives; imported when first used, so that `qdq --help` stays quick.
_HOME = {
    "Fixed": "fixing",
    "Finding": "findings",
    "GivenRanges": "givenranges",
    "Images": "images",
    "Observing": "observing",
    "PairDiff": "pairdiff",
    "Part": "ranges",
    "Plan": "planning",
    "Profile": "profiles",
    "QdqError": "errors",
    "Quantized": "quantizing",
    "Ranges": "ranges",
    "Scales": "calibration",
    "Source": "loading",
    "Subset": "feeds",
    "Target": "target",
    "Thresholds": "validation",
    "Validation": "validation",
    "apply": "rewriting",
    "calibrate": "calibration",
    "check": "checking",
    "diff": "pairdiff",
    "explain": "explaining",
    "fix": "fixing",
    "given_by_hand": "givenranges",
    "load": "loading",
    "load_rules": "rulefile",
    "merge": "ranges",
    "misses": "validation",
    "observe": "calibration",
    "parse_profile": "profiles",
    "parse_target": "target",
    "plan": "planning",
    "quantize": "quantizing",
    "read_given": "givenfiles",
    "save": "quantizing",
    "strip": "stripping",
    "validate": "validation",
}

__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605 a list of texts


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qdq' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qdq.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
