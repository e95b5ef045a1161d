"""The nodes that TensorRT fuses with a convolution or matrix product.

Source: TensorRT documentation, layer fusion catalog (convolution with scale, batch norm,
activation, element-wise sum and padding). Where the text leaves a question open, the engines
that NVIDIA published with trt-engine-explorer and NVIDIA/TensorRT issues 2592 (padding), 3205 and
3861 (SiLU and residual Add) decide.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from qdq.engines.prediction.fusion_group import (
    POINTWISE,
    FusionGroup,
    has_few_channels,
    is_depthwise,
    multiplied_type,
)
from qdq.engines.prediction.qdq_propagation import QuantizationFlow, SlotRead
from qdq.graph.index import Node
from qdq.graph.operators import CONVOLUTION_EPILOGUES, CONVOLUTIONS, FOLDED_INTO_WEIGHTS

_MOST_SCALINGS = 8
_LARGEST_EPILOGUE = 16
_RESIDUAL_OPERANDS = 2


def fuse_weighted(flow: QuantizationFlow, node: Node, fused_ids: Set[int]) -> FusionGroup:
    """Return the group of a weighted node; `fused_ids` are the nodes of other groups, by `id`."""
    fusion = _WeightedFusion(flow, node, fused_ids)
    fusion.add_padding()
    fusion.add_readers(_is_scaling, _MOST_SCALINGS)
    if node.op in CONVOLUTIONS:
        fusion.add_residual()
    has_activation = fusion.add_readers(_is_epilogue, 1)
    if not has_activation and fusion.addend is None:
        fusion.add_generated_epilogue()
    if fusion.addend is None:
        fusion.add_pool()
    nodes = sorted(fusion.nodes, key=lambda member: member.position)
    return FusionGroup(
        family="weighted",
        nodes=tuple(nodes),
        core=node,
        output=fusion.output,
        addend=fusion.addend,
        padding=fusion.padding,
        has_pool=fusion.has_pool,
    )


class _WeightedFusion:
    """A group under construction: the weighted node and the nodes fused so far."""

    def __init__(self, flow: QuantizationFlow, core: Node, fused_ids: Set[int]) -> None:
        self.flow = flow
        self.core = core
        self.nodes = [core]
        self.output: str = core.outputs[0]
        self.addend: SlotRead | None = None
        self.padding: Node | None = None
        self.has_pool = False
        self._fused_ids = fused_ids

    def add_padding(self) -> None:
        """Add the zero padding before a convolution, unless a pair is between them."""
        if self.core.op != "Conv":
            return
        read = self.flow.read(self.core.inputs[0])
        pad = self.flow.index.producers.get(read.tensor)
        if read.quantization or pad is None or pad.op != "Pad":
            return
        reader = self.flow.sole_reader(read.tensor)
        if reader is self.core and self.flow.commutes(pad):
            self.padding = pad
            self.nodes.append(pad)

    def add_readers(self, accepts: Callable[[QuantizationFlow, Node], bool], at_most: int) -> bool:
        """Add nodes after the output, one reading the next; return whether there was one."""
        first_output = self.output
        for _ in range(at_most):
            reader = self._free_reader()
            if reader is None or not accepts(self.flow, reader):
                break
            self._append(reader)
        return self.output != first_output

    def add_residual(self) -> None:
        """Add the Add that joins the output with another tensor of its shape."""
        add = self._free_reader()
        if add is None or add.op != "Add":
            return
        reads = self.flow.reads(add)
        if len(reads) != _RESIDUAL_OPERANDS or reads[0] == reads[1]:
            return
        shape = self.flow.index.shape
        if shape(add.inputs[0]) != shape(add.inputs[1]):
            return
        is_output = reads[0].tensor == self.output and not reads[0].quantization
        self.addend = reads[1] if is_output else reads[0]
        self._append(add)

    def add_generated_epilogue(self) -> None:
        """Add point-wise nodes, such as SiLU, before an INT8 convolution quantizes its result.

        Depthwise convolutions do not fuse them (NVIDIA/TensorRT issue 3205).
        """
        flow = self.flow
        node = self.core
        if node.op != "Conv" or not multiplied_type(flow, node) or is_depthwise(flow, node):
            return
        epilogue = self._collect_pointwise()
        inside_ids = set(map(id, epilogue))
        if self._is_read_outside(self.output, inside_ids):
            return
        exits = []
        for member in epilogue:
            result = member.outputs[0]
            if self._is_read_outside(result, inside_ids):
                exits.append(result)
        if len(exits) == 1 and exits[0] in flow.required:
            self.nodes.extend(epilogue)
            self.output = exits[0]

    def add_pool(self) -> None:
        """Add the max pool that runs in the kernel of a first INT8 convolution.

        The pool's result is then INT8 too.
        """
        flow = self.flow
        pool = flow.sole_reader(self.output)
        if pool is None or pool.op != "MaxPool" or self.core.op != "Conv":
            return
        if multiplied_type(flow, self.core) != "Int8" or not has_few_channels(flow, self.core):
            return
        if pool.outputs[0] in flow.required:
            self.has_pool = True
            self._append(pool)

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self.output = node.outputs[0]

    def _free_reader(self) -> Node | None:
        """Return the only reader of the output, unless another group has it."""
        reader = self.flow.sole_reader(self.output)
        if reader is None or id(reader) in self._fused_ids:
            return None
        return reader

    def _collect_pointwise(self) -> list[Node]:
        """Return the point-wise nodes that compute from the output alone."""
        members: list[Node] = []
        results = {self.output}
        queue = [self.output]
        while queue and len(members) <= _LARGEST_EPILOGUE:
            tensor = queue.pop()
            for reader, _ in self.flow.float_readers.get(tensor, ()):
                if reader in members or not self._is_pointwise_of(reader, results):
                    continue
                members.append(reader)
                results.add(reader.outputs[0])
                queue.append(reader.outputs[0])
        return members

    def _is_pointwise_of(self, node: Node, results: set[str]) -> bool:
        if node.op not in POINTWISE or id(node) in self._fused_ids:
            return False
        reads = self.flow.reads(node)
        if any(read.quantization for read in reads):
            return False
        return results.issuperset(read.tensor for read in reads)

    def _is_read_outside(self, tensor: str, inside_ids: Set[int]) -> bool:
        if self.flow.quantized_reads.get(tensor) or tensor in self.flow.outputs:
            return True
        readers = self.flow.float_readers.get(tensor, ())
        return any(id(reader) not in inside_ids for reader, _ in readers)


def _is_scaling(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a node has a constant operand that is folded into the weight or bias before it."""
    if node.op not in FOLDED_INTO_WEIGHTS or len(flow.inputs(node)) != 1:
        return False
    return _keeps_shape(flow, node)


def _is_epilogue(flow: QuantizationFlow, node: Node) -> bool:
    return node.op in CONVOLUTION_EPILOGUES and len(flow.inputs(node)) == 1


def _keeps_shape(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a constant operand does not make the result larger."""
    read = flow.reads(node)[0]
    input_shape = flow.index.shape(read.tensor)
    output_shape = flow.index.shape(node.outputs[0])
    return input_shape is None or output_shape is None or input_shape == output_shape
