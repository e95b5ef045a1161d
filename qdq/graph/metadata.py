"""Keys of the `metadata_props` that qdq writes into models and nodes."""

from __future__ import annotations

from onnx import ModelProto

#: The `metadata_props` keys of qdq begin with this.
METADATA_PREFIX = "qdq."

#: The key of the rules on each Q and DQ.
RULE_KEY = "qdq.rule"

#: The key of the smallest and largest integer of a pair that a Clip between Q and DQ narrows.
LEVELS_KEY = "qdq.levels"

#: Keys of the model's `metadata_props`: the request that it was quantized by.
TARGETS_KEY = "qdq.targets"
RULES_KEY = "qdq.rules"
LEAVE_FLOAT_KEY = "qdq.leave-float"
METHOD_KEY = "qdq.method"
DATA_KEY = "qdq.data"
SHAPES_KEY = "qdq.shapes"
BATCH_KEY = "qdq.batch"
RANGES_KEY = "qdq.ranges"

#: The key of the biases before their correction, which stripping restores.
BIASES_KEY = "qdq.biases"


def remove_metadata(model: ModelProto) -> None:
    """Remove the entries of qdq from a model's metadata."""
    kept = [p for p in model.metadata_props if not p.key.startswith(METADATA_PREFIX)]
    if len(kept) < len(model.metadata_props):
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
