"""ONNX graphs: loading, an index of edges, and operators and patterns by their role."""

from __future__ import annotations

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.loader import load
from qdq.graph.shape_profiles import Profile, parse_profile
from qdq.graph.source import ModelLike, Source

__all__ = [
    "Edge",
    "GraphIndex",
    "ModelLike",
    "Node",
    "Profile",
    "Source",
    "load",
    "parse_profile",
]
