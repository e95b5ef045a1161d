"""Keys of the `metadata_props` that qdq writes into models and nodes."""

from __future__ import annotations

from collections.abc import Container

from onnx import ModelProto, StringStringEntryProto

#: The `metadata_props` keys of qdq begin with this.
METADATA_PREFIX = "qdq."

#: The key of the rules on each Q and DQ.
RULE_KEY = "qdq.rule"

#: The key of the product on the Unsqueeze and the Squeeze around it.
ROWS_KEY = "qdq.rows"

#: The key of the smallest and largest integer of a pair that a Clip between Q and DQ narrows.
LEVELS_KEY = "qdq.levels"

#: Keys of the model's `metadata_props`: the request that it was quantized by.
TARGETS_KEY = "qdq.targets"
RULES_KEY = "qdq.rules"
LEAVE_FLOAT_KEY = "qdq.leave-float"
SENSITIVE_KEY = "qdq.sensitive"
METHOD_KEY = "qdq.method"
DATA_KEY = "qdq.data"
SHAPES_KEY = "qdq.shapes"
BATCH_KEY = "qdq.batch"
RANGES_KEY = "qdq.ranges"

#: Keys of the float type that a model was cast to, and of the nodes that stayed in float32.
FLOAT_KEY = "qdq.float"
KEEP_FP32_KEY = "qdq.keep-fp32"
CAST_KEYS = (FLOAT_KEY, KEEP_FP32_KEY)

#: The key of the channel factors that the model's weights were multiplied with.
EQUALIZATION_KEY = "qdq.equalization"

#: The key of the biases before their correction, which stripping restores.
BIASES_KEY = "qdq.biases"


def remove_metadata(model: ModelProto, kept: Container[str] = ()) -> None:
    """Remove the entries of qdq from a model's metadata, except for those of some keys."""
    remaining: list[StringStringEntryProto] = []
    for entry in model.metadata_props:
        if entry.key in kept or not entry.key.startswith(METADATA_PREFIX):
            remaining.append(entry)
    if len(remaining) < len(model.metadata_props):
        del model.metadata_props[:]
        model.metadata_props.extend(remaining)
