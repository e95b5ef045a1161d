"""One graph or body while it is cast: the type of each tensor, and its name in each type."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, NodeProto, TensorProto, helper

from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex
from qdq.graph.pairs import QdqPair
from qdq.graph.unique_names import UniqueNames
from qdq.quantizer import ElementType

#: ONNX's names of the types between which tensors are cast.
_SUFFIXES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


class StoredFloats:
    """A stored float32 tensor: an initializer or the value of a Constant."""

    def __init__(self, name: str, position: int | None) -> None:
        self.name = name
        #: The position of the Constant; None for an initializer.
        self.position = position
        #: Its name in each type that is read.
        self.names: dict[int, str] = {}
        #: The type of the integers that it is the scale of; None for values.
        self.element: ElementType | None = None


class CastPair:
    """A pair, and the name of its result in each type that is read."""

    def __init__(self, pair: QdqPair) -> None:
        self.pair = pair
        self.names: dict[int, str] = {}


class CastScope:
    """The tensors of one graph by their names in the model before.

    `labels` are the labels of its nodes in the float graph.
    """

    def __init__(
        self,
        index: GraphIndex,
        graph: GraphProto,
        labels: list[str],
        names: UniqueNames,
        outer: CastScope | None,
    ) -> None:
        self.index = index
        self.graph = graph
        self.labels = labels
        self.outer = outer
        #: The type of each float tensor that a node computes or a caller passes.
        self.types: dict[str, int] = {}
        #: Results of Casts that are removed, with the tensor that is read in their place.
        self.aliases: dict[str, str] = {}
        self.pairs: dict[str, CastPair] = {}
        #: Pairs that keep scales in float32, and the tensors that Casts after them are named after.
        self.wide_pairs: list[QdqPair] = []
        self.named_after: dict[str, str] = {}
        #: Positions of the nodes of pairs.
        self.paired: set[int | None] = set()
        #: The Casts to float32 of weights whose pairs keep scales in float32, by weight.
        self.wide_casts: dict[str, NodeProto] = {}
        self.stored: dict[str, StoredFloats] = {}
        #: The Casts after each tensor: the name of the result by type.
        self.casts: dict[str, dict[int, str]] = {}
        #: The Casts that the model has already, by tensor and type; they are used where needed.
        self.known_casts: dict[tuple[str, int], NodeProto] = {}
        #: Tensors that got another name, because a graph output keeps theirs.
        self.renamed: dict[str, str] = {}
        #: Positions of nodes that are removed.
        self.removed: set[int] = set()
        self.bodies: list[CastScope] = []
        self._names = names

    @property
    def scopes(self) -> Iterator[CastScope]:
        """This graph and the bodies in it."""
        yield self
        for body in self.bodies:
            yield from body.scopes

    def find(self, name: str) -> CastScope | None:
        """Return the scope that defines a float tensor; None for others."""
        scope: CastScope | None = self
        while scope is not None:
            if scope._defines(name):
                return scope
            scope = scope.outer
        return None

    def _defines(self, name: str) -> bool:
        return (
            name in self.types or name in self.stored or name in self.pairs or name in self.aliases
        )

    def type_of(self, name: str) -> int:
        """Return the type in which a tensor is there without a Cast; 0 where any or none is."""
        scope = self.find(name)
        if scope is None or name in scope.stored or name in scope.pairs:
            return 0
        if name in scope.aliases:
            return scope.type_of(scope.aliases[name])
        return scope.types[name]

    def read(self, name: str, wanted: int) -> str:
        """Return the name of a tensor in the wanted type; a Cast is added where there is none."""
        scope = self.find(name)
        if scope is None:
            return name
        if name in scope.aliases:
            return scope.read(scope.aliases[name], wanted)
        if name in scope.pairs:
            return scope._name_in(scope.pairs[name].names, name, wanted, is_first_kept=True)
        if name in scope.stored:
            names = scope.stored[name].names
            return scope._name_in(names, name, wanted, is_first_kept=wanted == TensorProto.FLOAT)
        if scope.types[name] == wanted:
            return scope.renamed.get(name, name)
        return scope._name_in(scope.casts.setdefault(name, {}), name, wanted, is_first_kept=False)

    def _name_in(self, names: dict[int, str], name: str, wanted: int, is_first_kept: bool) -> str:
        """Return the name for a type, a new one where the tensor is not there in it yet."""
        if wanted not in names:
            keeps_name = is_first_kept and name not in names.values()
            known = self.known_casts.get((name, wanted))
            origin = self.named_after.get(name, name)
            if keeps_name:
                names[wanted] = name
            elif known is not None:
                names[wanted] = known.output[0]
            else:
                names[wanted] = self.fresh_name(origin, wanted)
        return names[wanted]

    def fresh_name(self, name: str, elem_type: int) -> str:
        """Return an unused name for a tensor in a type."""
        return self._names.fresh(f"{name}_{_SUFFIXES[elem_type]}")

    def cast_nodes(self, name: str) -> Iterator[NodeProto]:
        """Yield the Casts after a tensor."""
        if name in self.wide_casts:
            yield self.wide_casts[name]
        origin = self.renamed.get(name, name)
        for elem_type, result in self.casts.get(name, {}).items():
            known = self.known_casts.get((name, elem_type))
            is_known = known is not None and known.output[0] == result
            yield make_cast(origin, result, elem_type, known.name if known and is_known else "")


def make_cast(tensor: str, result: str, elem_type: int, name: str = "") -> NodeProto:
    """Return a Cast, by default named after its result."""
    name = name or f"{result}_Cast"
    return helper.make_node("Cast", [tensor], [result], name=name, to=elem_type)


def short_code(float_type: FloatType, is_short: bool) -> int:
    """Return the ONNX code of a short type, or of float32."""
    return float_type.code if is_short else int(TensorProto.FLOAT)
