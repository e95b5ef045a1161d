"""Keys of the `metadata_props` that qdq writes into models and nodes."""

from __future__ import annotations

import onnx

#: The `metadata_props` keys of qdq begin with this.
METADATA_PREFIX = "qdq."

#: The key of the rules on each Q and DQ.
RULE_KEY = "qdq.rule"

#: The key of the integers that a pair holds, where a Clip between its halves narrows them: the least and the largest.
LEVELS_KEY = "qdq.levels"

#: Keys of the model's `metadata_props`: what made it.
TARGETS_KEY, RULES_KEY, LEAVE_FLOAT_KEY, METHOD_KEY, DATA_KEY = (
    "qdq.targets",
    "qdq.rules",
    "qdq.leave-float",
    "qdq.method",
    "qdq.data",
)
SHAPES_KEY, BATCH_KEY, RANGES_KEY = "qdq.shapes", "qdq.batch", "qdq.ranges"


def remove_metadata(model: onnx.ModelProto) -> None:
    """Remove what qdq wrote into a model's metadata."""
    kept = [p for p in model.metadata_props if not p.key.startswith(METADATA_PREFIX)]
    if len(kept) < len(model.metadata_props):
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
