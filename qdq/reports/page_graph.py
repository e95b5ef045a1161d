"""The network of a page: nodes with their decisions, the blocks they fold to, and the layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from onnx import TensorProto

from qdq.graph.bodies import qualified_name
from qdq.graph.float_types import FLOAT_TYPES, FP32
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.quantizer import ELEMENT_TYPES, INT4
from qdq.reports.edge_decisions import EdgeDecision, RuleText
from qdq.reports.graph_blocks import NodeBlock, fold_to_blocks
from qdq.reports.graph_layout import Link, order_rows, rank_nodes
from qdq.sensitivity.graph_blocks import find_cuts

#: The precision of nodes without floats.
OTHER = "other"

#: Operators that do not read the values of their inputs.
_READS_SHAPES = ("Shape", "Size")

_FLOAT_LABELS: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
}


class PageInput(msgspec.Struct, frozen=True, array_like=True):
    """One input of a node with the decision about it."""

    slot: int
    tensor: str
    type: str
    pair: str
    because: tuple[str, ...]
    reason: str


class PageNode(msgspec.Struct, frozen=True, array_like=True):
    """One node. Ranks and rows are within its block."""

    name: str
    operator: str
    block: int
    rank: int
    row: int
    #: ``INT8``, ``FP8``, ``INT4``, ``FP16``, ``BF16``, ``FP32`` or ``other``.
    precision: str
    #: Whether it has weights or a pair; other nodes compute in what their neighbors leave them.
    is_central: bool
    inputs: tuple[PageInput, ...]
    #: What was measured, found or changed at the node, one sentence each.
    notes: tuple[str, ...]
    #: The signal-to-noise ratio with this node alone in INT8, in dB, or at its result.
    snr_db: float | None
    #: Whether nodes of other blocks compute its inputs, and read its outputs.
    is_entry: bool
    is_exit: bool


class PageBlock(msgspec.Struct, frozen=True, array_like=True):
    """Some nodes that are shown as one. Ranks and rows are within the whole graph."""

    name: str
    rank: int
    row: int


class PageGraph(msgspec.Struct, frozen=True):
    """A network to draw."""

    nodes: tuple[PageNode, ...]
    blocks: tuple[PageBlock, ...]
    #: Links of nodes in the same block, and links of blocks, by their numbers.
    links: tuple[Link, ...]
    block_links: tuple[Link, ...]
    #: What the rules say that the nodes name.
    rules: dict[str, RuleText]
    #: What `PageNode.snr_db` is; "" where no node has one.
    snr_title: str = ""


class GraphContent(msgspec.Struct, frozen=True):
    """What is known about a network."""

    index: GraphIndex
    decisions: Mapping[Edge, EdgeDecision]
    rules: dict[str, RuleText]
    #: By the qualified label of a node.
    notes: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)
    snr_db: Mapping[str, float] = msgspec.field(default_factory=dict)
    snr_title: str = ""
    #: The type that float nodes become, and the nodes that stay in FP32, by qualified label.
    float_type: str = FP32.name
    kept_fp32: frozenset[str] = frozenset()


def make_graph(content: GraphContent) -> PageGraph | None:
    """Return the network of a page, None for one without nodes that compute."""
    placed = [item for item in _list_nodes(content.index) if not _is_constant(*item)]
    if not placed:
        return None
    labels = [qualified_name(scope.path, node.label) for scope, node in placed]
    links = _find_links(placed)
    titles = [make_title(node.label, node.op) for _, node in placed]
    blocks = fold_to_blocks(labels, titles, _find_positions(content.index, placed))
    places = _Places(len(placed), links, blocks)
    nodes: list[PageNode] = []
    for position, (scope, node) in enumerate(placed):
        nodes.append(_make_node(content, scope, node, places, position))
    return PageGraph(
        tuple(nodes),
        tuple(places.list_blocks()),
        tuple(places.inner_links),
        tuple(places.block_links),
        content.rules,
        content.snr_title if content.snr_db else "",
    )


def make_title(label: str, operator: str) -> str:
    """Return the title of a node: its label, after the operator where that is a number alone."""
    return f"{operator} {label}" if label.startswith("#") else label


def _list_nodes(index: GraphIndex) -> Iterator[tuple[GraphIndex, Node]]:
    """Yield every node of a graph, those in bodies before the node that carries them."""
    bodies: dict[str, list[GraphIndex]] = {}
    for body in index.bodies:
        if body.owner is not None:
            bodies.setdefault(body.owner.label, []).append(body)
    for node in index.nodes:
        for body in bodies.get(node.label, ()):
            yield from _list_nodes(body)
        yield index, node


def _is_constant(scope: GraphIndex, node: Node) -> bool:
    return scope.constants.issuperset(filter(None, node.outputs))


def _find_links(placed: Sequence[tuple[GraphIndex, Node]]) -> list[Link]:
    """Return the links from the nodes that compute tensors to those that read them."""
    producers: dict[tuple[str, str], int] = {}
    for position, (scope, node) in enumerate(placed):
        for tensor in filter(None, node.outputs):
            producers[scope.path, tensor] = position
    links: set[Link] = set(_find_body_links(placed))
    for position, (scope, node) in enumerate(placed):
        for tensor in node.read_names:
            start = producers.get((scope.defining_scope(tensor).path, tensor))
            if start is not None:
                links.add((start, position))
    return sorted(link for link in links if link[0] < link[1])


def _find_body_links(placed: Sequence[tuple[GraphIndex, Node]]) -> Iterator[Link]:
    """Yield the links from the results of bodies to the nodes that carry them."""
    owners: dict[tuple[str, str], int] = {}
    for position, (scope, node) in enumerate(placed):
        owners[scope.path, node.label] = position
    for position, (scope, node) in enumerate(placed):
        if scope.outer is None or scope.owner is None:
            continue
        owner = owners.get((scope.outer.path, scope.owner.label))
        if owner is not None and not scope.outputs.keys().isdisjoint(node.outputs):
            yield position, owner


def _find_positions(index: GraphIndex, placed: Sequence[tuple[GraphIndex, Node]]) -> list[int]:
    """Return the positions after which one tensor is needed, among the nodes that are shown."""
    cuts = set(find_cuts(index))
    positions: list[int] = []
    for position, (scope, node) in enumerate(placed):
        if scope is index and node.position in cuts:
            positions.append(position)
    return positions


class _Places:
    """Ranks and rows of nodes in their blocks, and of the blocks."""

    def __init__(self, count: int, links: list[Link], blocks: list[NodeBlock]) -> None:
        self._names = [block.name for block in blocks]
        self.block_of = [0] * count
        for number, block in enumerate(blocks):
            for position in block.positions:
                self.block_of[position] = number
        block_of = self.block_of
        self.inner_links: list[Link] = []
        self.entries: set[int] = set()
        self.exits: set[int] = set()
        block_links: dict[Link, None] = {}
        for start, end in links:
            pair = block_of[start], block_of[end]
            if pair[0] == pair[1]:
                self.inner_links.append((start, end))
            else:
                block_links[pair] = None
                self.exits.add(start)
                self.entries.add(end)
        self.block_links = list(block_links)
        self.ranks = rank_nodes(count, self.inner_links)
        self._move_to_zero(blocks)
        self.rows = self._order_blocks(blocks)

    def list_blocks(self) -> Iterator[PageBlock]:
        """Yield the blocks with their places."""
        ranks = rank_nodes(len(self._names), self.block_links)
        rows = order_rows(ranks, self.block_links)
        for name, rank, row in zip(self._names, ranks, rows, strict=True):
            yield PageBlock(name, rank, row)

    def _move_to_zero(self, blocks: list[NodeBlock]) -> None:
        """Let the ranks of each block begin at 0."""
        for block in blocks:
            least = min(self.ranks[member] for member in block.positions)
            for member in block.positions:
                self.ranks[member] -= least

    def _order_blocks(self, blocks: list[NodeBlock]) -> list[int]:
        """Return the rows of the nodes in each block."""
        links_of: dict[int, list[Link]] = {}
        for link in self.inner_links:
            links_of.setdefault(self.block_of[link[0]], []).append(link)
        rows = [0] * len(self.block_of)
        for number, block in enumerate(blocks):
            members = block.positions
            numbers = {member: i for i, member in enumerate(members)}
            links = [(numbers[a], numbers[b]) for a, b in links_of.get(number, ())]
            ordered = order_rows([self.ranks[member] for member in members], links)
            for member, row in zip(members, ordered, strict=True):
                rows[member] = row
        return rows


def _make_node(
    content: GraphContent, scope: GraphIndex, node: Node, places: _Places, position: int
) -> PageNode:
    label = qualified_name(scope.path, node.label)
    inputs = tuple(_list_inputs(content, scope, node))
    weighted = operands(scope, node)
    return PageNode(
        name=label,
        operator=node.op,
        block=places.block_of[position],
        rank=places.ranks[position],
        row=places.rows[position],
        precision=_find_precision(content, scope, node, weighted),
        is_central=bool(weighted) or any(item.type for item in inputs),
        inputs=inputs,
        notes=tuple(content.notes.get(label, ())),
        snr_db=content.snr_db.get(label),
        is_entry=position in places.entries,
        is_exit=position in places.exits,
    )


def _list_inputs(content: GraphContent, scope: GraphIndex, node: Node) -> Iterator[PageInput]:
    """Yield the inputs of a node that a decision is about."""
    for edge in scope.edges_into(node):
        decision = content.decisions.get(edge)
        if decision is not None:
            yield PageInput(
                edge.slot,
                edge.qualified_tensor,
                decision.type,
                decision.pair,
                decision.because,
                decision.reason,
            )


def _find_precision(
    content: GraphContent, scope: GraphIndex, node: Node, weighted: Sequence[Edge]
) -> str:
    """Return the type that a node computes in, as its pairs and its tensors say.

    A weighted node is quantized where both operands are, or its weight in INT4; another node where
    all inputs are that are not constants.
    """
    edges = list(weighted)
    if not edges:
        for edge in scope.edges_into(node):
            if scope.is_float(edge.tensor) and not scope.is_constant(edge.tensor):
                edges.append(edge)
    types: list[str] = []
    for edge in edges:
        decision = content.decisions.get(edge)
        types.append(decision.type if decision else "")
    if types and all(types):
        return types[0]
    int4 = ELEMENT_TYPES[INT4].label
    if weighted and int4 in types:
        return int4
    return _find_float_type(content, scope, node)


def _find_float_type(content: GraphContent, scope: GraphIndex, node: Node) -> str:
    """Return the type of a node's floats; `OTHER` where it has none."""
    if node.op in _READS_SHAPES:
        return OTHER
    tensors = [*filter(None, node.outputs), *filter(None, node.inputs)]
    for tensor in tensors:
        label = _FLOAT_LABELS.get(scope.elem_type(tensor))
        if label is None:
            continue
        is_cast = qualified_name(scope.path, node.label) not in content.kept_fp32
        if label == FP32.label and is_cast:
            return str(FLOAT_TYPES[content.float_type].label)
        return label
    return OTHER
