"""Operators f of one tensor with f(s * x) = s * f(x) for factors s above 0 of its channels."""

from __future__ import annotations

import numpy as np

from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import POOLS
from qdq.graph.patterns import can_commute_with_quantization, is_spatial_mean

#: Operators that are homogeneous with any attributes.
_HOMOGENEOUS = frozenset(("Relu", "LeakyRelu", "PRelu", *POOLS))

#: A limit of a Clip beyond this is none.
_LARGEST_LIMIT = 3e38

_LIMITS = (("min", 1, -np.inf), ("max", 2, np.inf))
_PADS_SLOT = 1
_AXES_SLOT = 3


def is_homogeneous(index: GraphIndex, node: Node) -> bool:
    """Whether a factor above 0 of each channel of a node's first input passes to its output.

    Of Resize, of the modes that compute no value outside of the tensor. Of Pad, with zeros or
    values of the tensor and not along axis 1. Of Clip, with limits that are 0 or none.
    """
    if node.op in _HOMOGENEOUS:
        return True
    if node.op == "Clip":
        return _has_homogeneous_limits(index, node)
    if node.op == "Resize":
        mode = node.attribute("coordinate_transformation_mode", b"")
        return bool(mode != b"tf_crop_and_resize")
    if node.op == "Pad":
        return can_commute_with_quantization(index, node) and _keeps_channel_axis(index, node)
    return is_spatial_mean(index, node)


def _has_homogeneous_limits(index: GraphIndex, node: Node) -> bool:
    for name, slot, default in _LIMITS:
        limit = node.attribute(name, default)
        if len(node.inputs) > slot and node.inputs[slot]:
            if not index.is_constant(node.inputs[slot]):
                return False
            limit = float(index.constant(node.inputs[slot]))
        if limit != 0.0 and abs(limit) < _LARGEST_LIMIT:
            return False
    return True


def _keeps_channel_axis(index: GraphIndex, node: Node) -> bool:
    """Whether a Pad adds nothing along axis 1, the only one that its channels may be on."""
    if len(node.inputs) > _AXES_SLOT and node.inputs[_AXES_SLOT]:
        return False
    pads = node.attribute("pads")
    if pads is None:
        if len(node.inputs) <= _PADS_SLOT or not index.is_constant(node.inputs[_PADS_SLOT]):
            return False
        pads = index.constant(node.inputs[_PADS_SLOT]).tolist()
    rank = len(pads) // 2
    return rank > 1 and pads[1] == 0 and pads[rank + 1] == 0
