"""The engine that TensorRT proper would build, predicted from its documented fusions where it cannot be compiled.

TensorRT chooses among kernels by timing them on the GPU. What does not depend on that is written
down here: which nodes run as one layer (`fusing`), where INT8 reaches (`propagation`), and from
both the type and the memory format of every tensor, the conversions between them, and the Q and
DQ that stay layers of their own. Formats follow NvInferRuntime.h (TensorFormat) and the engines
that NVIDIA published with trt-engine-explorer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import onnx
from onnx import TensorProto

from qdq.engine import Engine, EngineLayer, LayerTensor, compilable
from qdq.fusing import CONVOLUTIONS, FEW_CHANNELS, Group, channels, fuse, int8_operands, is_depthwise
from qdq.index import GraphIndex, Node, node_labels
from qdq.loading import Source
from qdq.propagation import DEQUANTIZE, QUANTIZE, Flow, Quantization, Read
from qdq.target import Target

LINEAR, CHANNEL_LAST, TWO_WIDE, FOUR_WIDE, THIRTY_TWO_WIDE = "linear", "channel-last", "2-wide", "4-wide", "32-wide"
FLOAT, HALF, INT8, FP8 = "Float", "Half", "Int8", "FP8"
#: First compute capability with TF32 kernels, which read channels last.
_TF32 = 80
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: FLOAT, TensorProto.FLOAT16: HALF, TensorProto.BFLOAT16: "BFloat16", TensorProto.INT8: INT8, TensorProto.UINT8: "UInt8",
    TensorProto.BOOL: "Bool", TensorProto.INT32: "Int32", TensorProto.INT64: "Int64", TensorProto.FLOAT8E4M3FN: FP8,
}  # fmt: skip
_FLOATS = (FLOAT, HALF, "BFloat16")
_PLACEMENT = "TensorRT documentation, Q/DQ layer-placement recommendations"
_ENGINES = "engines published with trt-engine-explorer (ResNet-18, A100)"
_FORMATS = f"NvInferRuntime.h, TensorFormat; {_ENGINES}"
_FUSIONS = "TensorRT documentation, layer fusion catalog"


class Rule(msgspec.Struct, frozen=True):
    """A documented behaviour that a predicted layer follows."""

    name: str
    says: str
    #: Where it is documented.
    source: str


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("int8-operands", "A weighted layer with pairs on all its inputs multiplies in INT8 and writes INT8 if every reader quantizes alike.", _PLACEMENT),
        Rule("float-result", "An INT8 layer whose result somebody reads in float writes float; a Q behind it stays a layer.", _PLACEMENT),
        Rule("residual-int8", "A convolution and its residual Add run as one INT8 layer if the Add's other operand is INT8 and the sum quantized.", _PLACEMENT),
        Rule("residual-float", "If the Add's other operand or its reader is float, the fused convolution writes float; a Q behind stays a layer.", _PLACEMENT),
        Rule("few-channels", "A first INT8 convolution of up to four channels reads four-wide vectors.", _FORMATS),
        Rule("convolution-and-pool", "A first INT8 convolution, its activation and a max pool with INT8 results run as one layer.", f"{_FUSIONS}; {_ENGINES}"),
        Rule("depthwise-int8", "A depthwise convolution with pairs on its inputs has an INT8 kernel of its own.", "engines published with trt-engine-explorer"),
        Rule("float-operands", "A weighted layer without pairs on all its inputs multiplies in float.", _PLACEMENT),
        Rule("grouped-channels", "A grouped INT8 convolution needs a multiple of four channels a group; this one runs in float.", "NvInfer.h, setNbGroups"),
        Rule("deconvolution-3d", "A 3-D ConvTranspose with Q/DQ runs in float.", "NVIDIA/TensorRT issue 4668"),
        Rule("commutes", "Q moves backward and DQ forward past a layer that only moves values, or takes the larger: it runs in INT8.",
             "TensorRT documentation, Q/DQ propagation"),
        Rule("moves-float", "A layer that only moves values keeps the type it reads.", "TensorRT documentation, Q/DQ propagation"),
        Rule("quantized-pool", "An average pool with DQ in front and Q behind runs in INT8.", _PLACEMENT),
        Rule("float-pool", "An average pool without both stays in float: layers without weights that read INT8 must write it too.", _PLACEMENT),
        Rule("pointwise", "Neighbouring point-wise operators become one generated kernel.", _FUSIONS),
        Rule("quantized-pointwise", "A point-wise kernel whose readers all quantize writes INT8 itself.",
             f"{_PLACEMENT}; NVIDIA/TensorRT issues 3205 and 3542"),
        Rule("view", "A reshape copies nothing.", _FUSIONS),
        Rule("shuffle", "Neighbouring shuffles become one.", _FUSIONS),
        Rule("concat", "Layers write their results into a Concat's output in place; what others read too is copied.", _ENGINES),
        Rule("alone", "An operator that no fusion covers is a layer.", _FUSIONS),
        Rule("stand-alone-quantize", "A Q that no layer in front can take in is a layer.", _PLACEMENT),
        Rule("stand-alone-dequantize", "A DQ in front of a layer that computes in float is a layer.", _PLACEMENT),
        Rule("reformat", "Where two layers disagree on a tensor's type or memory format, a copy converts it.", _FORMATS),
    )
}  # fmt: skip


class _Held(msgspec.Struct, frozen=True):
    """A tensor as it lies in memory."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    format: str

    def described(self) -> LayerTensor:
        return LayerTensor(self.name, self.dims, self.dtype, self.format)

    @property
    def one_pixel(self) -> bool:
        """Whether channels are all it has, so that every format of a type is the same memory."""
        return all(d == 1 for d in self.dims[2:])


def predict_engine(model: onnx.ModelProto | Source, target: Target, shapes: Mapping[str, tuple[int, ...]] | None = None, *, allow_fp16: bool = False) -> Engine:
    """Return the engine that TensorRT proper is predicted to build; each layer names the rule it follows.

    `shapes` fixes the dynamic dimensions by input name; those not named become 1. By default the
    network is strongly typed, as always in TensorRT 11: the ONNX types decide. With `allow_fp16`
    the prediction is for TensorRT 10 and earlier, weakly typed and built with FP16 allowed.
    Takes time linear in the number of nodes.
    """
    source = model if isinstance(model, Source) else Source(None, model, "")
    fixed = compilable(source.model, shapes or {})
    for node, label in zip(fixed.graph.node, node_labels(source.model.graph), strict=True):
        node.name = label
    if _is_dynamic(source.model):  # the shapes written in the file are not the ones asked for
        del fixed.graph.value_info[:]
    index = GraphIndex(msgspec.structs.replace(source, model=fixed))
    typing = "weakly typed, FP16 allowed" if allow_fp16 else "strongly typed"
    compiler = f"TensorRT, {typing}"
    if refusal := _refusal(index):
        return Engine(target, compiler, failure=refusal)
    return Engine(target, compiler, _Prediction(Flow(index), target, allow_fp16).layers())


def _is_dynamic(model: onnx.ModelProto) -> bool:
    return any(not d.HasField("dim_value") or d.dim_value <= 0 for i in model.graph.input for d in i.type.tensor_type.shape.dim)


def _refusal(index: GraphIndex) -> str:
    """Return what the ONNX importer refuses, in a sentence, or ""."""
    for node in index.nodes:
        if node.op not in (QUANTIZE, DEQUANTIZE):
            continue
        if node.op == DEQUANTIZE and index.elem_type(node.inputs[0]) == TensorProto.INT32:
            return f"{node.label}: a DequantizeLinear of INT32, such as a quantized bias, is not supported"
        if len(node.inputs) > 2 and index.is_constant(node.inputs[2]) and index.constant(node.inputs[2]).astype(float).any():  # noqa: PLR2004
            return f"{node.label}: a zero point other than zero is not supported"
    return ""


class _Prediction:
    """Walks the layers in order and keeps how each tensor lies in memory."""

    def __init__(self, flow: Flow, target: Target, allow_fp16: bool) -> None:
        self.flow, self.target, self.allow_fp16 = flow, target, allow_fp16
        self.done: list[EngineLayer] = []
        #: By tensor and form: "" as it is written in float, a quantization, or ("dq", quantization).
        self.held: dict[tuple[str, object], _Held] = {}
        self.converted: dict[tuple[_Held, str, str], _Held] = {}
        #: Tensors that a layer wrote for one reader, so that it can write them elsewhere.
        self.written: set[str] = set()
        #: Float tensors that a stand-alone DQ wrote.
        self.dequantized: set[str] = set()

    def layers(self) -> tuple[EngineLayer, ...]:
        index = self.flow.index
        for name in index.inputs:
            self._hold(name, self._type(name), LINEAR)
        for group in fuse(self.flow):
            getattr(self, f"_{group.family}")(group)
        for name in index.outputs:
            if name not in self.flow.folded:
                self._finish(name)
        return tuple(self.done)

    # Types and shapes.

    def _dims(self, tensor: str) -> tuple[int, ...]:
        return tuple(d or 1 for d in self.flow.index.shape(tensor) or ())

    def _type(self, tensor: str) -> str:
        return _TYPES.get(self.flow.index.elem_type(tensor), FLOAT)

    def _float_type(self, tensor: str) -> str:
        """Return the float type in which a weighted layer writes a tensor."""
        own = self._type(tensor)
        return HALF if self.allow_fp16 and own == FLOAT else own

    # Tensors in memory.

    def _hold(self, tensor: str, dtype: str, layout: str, form: object = "") -> _Held:
        held = _Held(tensor, self._dims(tensor), dtype, layout)
        self.held[tensor, form] = held
        return held

    def _layer(
        self, kind: str, name: str, rule: str, tensors: tuple[Iterable[_Held], Iterable[_Held]], nodes: Iterable[str], constants: tuple[LayerTensor, ...] = ()
    ) -> None:
        inputs, outputs = (tuple(t.described() for t in side) for side in tensors)
        self.done.append(EngineLayer(name, kind, inputs, constants, outputs, tuple(dict.fromkeys(nodes)), rule))

    def _converted(self, held: _Held, dtype: str, layout: str) -> _Held:
        """Return a tensor in a type and format, through a copy where it is held otherwise; "" accepts any."""
        dtype, layout = dtype or held.dtype, layout or held.format
        if held.dtype == dtype and (held.format == layout or held.one_pixel):
            return held
        key = (held, dtype, layout)
        if key not in self.converted:
            made = _Held(f"Reformatted {held.name}", held.dims, dtype, layout)
            self._layer("Reformat", f"Reformatting CopyNode for {held.name}", "reformat", ([held], [made]), ())
            self.converted[key] = made
        return self.converted[key]

    def _quantized(self, read: Read, quantization: Quantization, layout: str) -> _Held:
        """Return a tensor in INT8, through a stand-alone quantize where nothing wrote it so."""
        key = (read.tensor, quantization)
        if key not in self.held:
            before = self._any(read.tensor)
            self._hold(read.tensor, quantization.dtype, layout, quantization)
            labels = [q for q in (read.q or self._label_of_q(read.tensor, quantization),) if q]
            self._layer("Reformat", " + ".join(labels) or f"quantize {read.tensor}", "stand-alone-quantize", ([before], [self.held[key]]), labels)
        return self._converted(self.held[key], "", layout)

    def _label_of_q(self, tensor: str, quantization: Quantization) -> str:
        """Return the label of the Q that asks for a quantization, here or behind what commutes."""
        seen = 0
        while seen < len(self.flow.nodes):
            for read in self.flow.quantized.get(tensor, ()):
                if read.quantization == quantization and read.q:
                    return read.q
            readers = self.flow.plain.get(tensor, ())
            if not readers:
                return ""
            tensor, seen = readers[0][0].outputs[0], seen + 1
        return ""

    def _any(self, tensor: str) -> _Held:
        """Return a tensor in whatever form it was written."""
        if (tensor, "") not in self.held:
            written = (held for (name, _), held in self._forms(tensor))
            return next(written, None) or self._hold(tensor, self._type(tensor), LINEAR)
        return self.held[tensor, ""]

    def _forms(self, tensor: str) -> list[tuple[tuple[str, object], _Held]]:
        forms = [self.flow.wanted.get(tensor), getattr(self.flow.reached.get(tensor), "quantization", None)]
        return [((tensor, form), self.held[tensor, form]) for form in forms if form and (tensor, form) in self.held]

    def _float(self, read: Read, dtype: str = "", layout: str = "") -> _Held:
        """Return a value in float, through a stand-alone dequantize where it lies in INT8."""
        quantization = read.quantization
        if quantization is None and (read.tensor, "") not in self.held:
            quantization = self.flow.quantization(read) or self.flow.wanted.get(read.tensor)
        if quantization is None:
            return self._converted(self._any(read.tensor), dtype, layout)
        key = (read.tensor, ("dq", quantization))
        if key not in self.held:
            before = self._quantized(read, quantization, "")
            dq = read.dq or getattr(self.flow.reached.get(read.tensor), "dq", "")
            made = self._type(self.flow.index.by_label[dq].outputs[0]) if dq in self.flow.index.by_label else FLOAT
            held = _Held(f"dequantized {read.tensor}", before.dims, made, layout or LINEAR)
            self._layer("Reformat", dq or f"dequantize {read.tensor}", "stand-alone-dequantize", ([before], [held]), [dq] if dq else [])
            self.held[key] = held
        return self._converted(self.held[key], dtype, layout)

    # Layers.

    def _name(self, group: Group) -> str:
        return " + ".join(n.label for n in group.nodes)

    def _weighted(self, group: Group) -> None:
        dtype, refused = self._multiplies(group)
        if dtype:
            self._int8_layer(group, dtype)
        else:
            self._float_layer(group, refused)

    def _multiplies(self, group: Group) -> tuple[str, str]:
        """Return the quantized type a weighted layer multiplies in, or "" and the rule that keeps it in float."""
        node, groups = group.core, group.core.attribute("group", 1)
        dtype = int8_operands(self.flow, node)
        if not dtype:
            return "", "float-operands"
        made = self._dims(node.outputs[0])
        if node.op == "ConvTranspose" and len(made) > 4:  # noqa: PLR2004 three spatial dimensions
            return "", "deconvolution-3d"
        grouped = node.op in CONVOLUTIONS and groups > 1 and not is_depthwise(self.flow, node)
        if grouped and ((channels(self.flow, node) // groups) % 4 or (made[1] // groups if len(made) > 1 else 0) % 4):
            return "", "grouped-channels"
        return dtype, ""

    def _int8_layer(self, group: Group, dtype: str) -> None:
        node, out = group.core, group.output
        spatial = node.op in CONVOLUTIONS
        vectors = THIRTY_TWO_WIDE if spatial else LINEAR
        few = spatial and 0 < channels(self.flow, node) <= FEW_CHANNELS
        wanted = self.flow.wanted.get(out)
        addend = self.flow.quantization(group.addend) if group.addend else None
        writes = wanted if group.addend is None or addend else None
        rule = self._int8_rule(group, few, writes)
        read_in = (LINEAR if group.pooled else FOUR_WIDE) if few else vectors
        data = [self._quantized(r, q, read_in) for r in self._multiplied(group) if (q := self.flow.quantization(r))]
        if writes:
            extra = [self._quantized(group.addend, addend, vectors)] if group.addend and addend else []
            made = self._hold(out, writes.dtype, vectors, writes)
        else:
            kind, layout = self._float_result(group, few, addend is not None)
            extra = [self._float(group.addend, kind, layout)] if group.addend else []
            made = self._hold(out, kind, layout)
        self._done_weighted(group, rule, [*data, *extra], made, dtype)

    def _int8_rule(self, group: Group, few: bool, writes: Quantization | None) -> str:
        if group.addend is not None:
            return "residual-int8" if writes else "residual-float"
        if group.pooled:
            return "convolution-and-pool"
        if few:
            return "few-channels"
        if not writes:
            return "float-result"
        return "depthwise-int8" if is_depthwise(self.flow, group.core) else "int8-operands"

    def _float_result(self, group: Group, few: bool, dequantized: bool) -> tuple[str, str]:
        """Return type and format of an INT8 layer's float result.

        Half comes in thirty-two-wide vectors, Float in rows. Where FP16 is merely allowed, the
        result is Float for a four-wide first convolution, which has no other kernel, for a
        graph output, and for an Add with what a stand-alone dequantize wrote.
        """
        dtype = self._float_type(group.output)
        if dtype == HALF and self.allow_fp16 and self._type(group.output) == FLOAT and (few or dequantized or self._ends_graph(group.output)):
            dtype = FLOAT
        wide = dtype == HALF and group.core.op in CONVOLUTIONS and not few
        return dtype, THIRTY_TWO_WIDE if wide else LINEAR

    def _ends_graph(self, tensor: str) -> bool:
        """Whether a tensor is a graph output, as it is or behind a reshape."""
        for _ in range(len(self.flow.nodes)):
            if tensor in self.flow.outputs:
                return True
            reader = self.flow.sole_reader(tensor)
            if reader is None or reader.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
                return False
            tensor = reader.outputs[0]
        return False

    def _float_layer(self, group: Group, rule: str) -> None:
        node = group.core
        spatial = node.op in CONVOLUTIONS
        dtype = self._float_type(group.output)
        few = spatial and 0 < channels(self.flow, node) <= FEW_CHANNELS
        rows = not spatial or (dtype == FLOAT and (few or (self.target.sm and self.target.sm < _TF32)))
        layout = LINEAR if rows else CHANNEL_LAST
        reads = [*self._multiplied(group), *([group.addend] if group.addend else [])]
        inputs = [self._float(r, dtype, layout) for r in reads]
        self._done_weighted(group, rule, inputs, self._hold(group.output, dtype, layout), dtype)

    def _multiplied(self, group: Group) -> list[Read]:
        """Return the computed operands of a weighted layer, and a computed bias of a Gemm."""
        first = group.padding or group.core
        others = [r for slot, r in self.flow.inputs(group.core) if slot]
        return [*(r for slot, r in self.flow.inputs(first) if slot == 0), *others]

    def _done_weighted(self, group: Group, rule: str, inputs: list[_Held], made: _Held, dtype: str) -> None:
        node = group.core
        weights = [t for t in node.inputs[1:2] if t in self.flow.folded]
        constants = tuple(LayerTensor(t, self._dims(t), dtype) for t in weights)
        pairs = [label for t in weights for label in self.flow.pair_labels(t)]
        names = [*pairs[-1:], *(n.label for n in group.nodes)]
        kind = self._weighted_kind(group, dtype)
        self._layer(kind, " + ".join(names), rule, (inputs, [made]), [*(n.label for n in group.nodes), *pairs], constants)
        self._wrote(group.output)

    def _weighted_kind(self, group: Group, dtype: str) -> str:
        op = group.core.op
        if group.pooled:
            return "ConvActPool"
        if op == "ConvTranspose":
            return "CaskDeconvolution"
        if op == "Conv":
            return "CudaDepthwiseConvolution" if is_depthwise(self.flow, group.core) and dtype == INT8 else "CaskConvolution"
        return "MatrixMultiply"

    def _pool(self, group: Group) -> None:
        node = group.core
        read = self.flow.inputs(node)[0][1]
        quantization, wanted = self.flow.quantization(read), self.flow.wanted.get(group.output)
        if self.flow.commutes(node):
            self._commuting(group, [read], "CudaPooling")
        elif quantization and wanted:
            before = self._quantized(read, quantization, THIRTY_TWO_WIDE)
            made = self._hold(group.output, wanted.dtype, THIRTY_TWO_WIDE, wanted)
            self._layer("CudaPooling", self._name(group), "quantized-pool", ([before], [made]), [node.label])
        else:
            self._float_pool(group, read, "float-pool")

    def _float_pool(self, group: Group, read: Read, rule: str) -> None:
        """Pool in float: no kernel reads thirty-two-wide Half, and two-wide is the next."""
        before = self._float(read)
        if before.format == THIRTY_TWO_WIDE:
            before = self._converted(before, "", TWO_WIDE)
        made = self._hold(group.output, before.dtype, before.format)
        is_max = group.core.op == "MaxPool"
        kind = "TiledPooling" if before.format == TWO_WIDE or (is_max and before.format == LINEAR) else "CudaPooling" if is_max else "CaskPooling"
        self._layer(kind, self._name(group), rule, ([before], [made]), [n.label for n in group.nodes])

    def _commuting(self, group: Group, reads: list[Read], kind: str) -> None:
        """A layer past which Q and DQ move: INT8 where its inputs are, or where all its readers want it."""
        quantizations = {self.flow.quantization(r) for r in reads}
        given = quantizations.pop() if len(quantizations) == 1 else None
        form = given or self.flow.wanted.get(group.output)
        if form is None and group.family == "pool":
            self._float_pool(group, reads[0], "moves-float")
            return
        layout = self._layout_of(group, reads)
        inputs = [self._quantized(r, form, layout) if form else self._float(r, "", layout) for r in reads]
        dtype = form.dtype if form else inputs[0].dtype
        outputs = [self._hold(o, dtype, layout, form or "") for o in self._outputs(group)]
        self._layer(kind, self._name(group), "commutes" if form else "moves-float", (inputs, outputs), [n.label for n in group.nodes])
        self._wrote(*self._outputs(group))

    def _layout_of(self, group: Group, reads: list[Read]) -> str:
        """Return the format in which a commuting layer reads: rows where it moves values across dimensions, else that of its first input."""
        if group.family == "pool":
            return THIRTY_TWO_WIDE
        if group.core.op in ("Relu", "Concat", "Pad", "Resize", "Upsample", "Slice", "Split"):
            quantization = self.flow.quantization(reads[0])
            held = self.held.get((reads[0].tensor, quantization)) if quantization else self.held.get((reads[0].tensor, ""))
            return held.format if held else LINEAR
        return LINEAR

    def _outputs(self, group: Group) -> list[str]:
        return [o for o in group.nodes[-1].outputs if o]

    def _shuffle(self, group: Group) -> None:
        read = self.flow.inputs(group.nodes[0])[0][1]
        if not self._is_value(read):
            self._other(group)
            return
        view = all(n.op != "Transpose" or self._moves_nothing(n) for n in group.nodes)
        self._commuting(group, [read], "NoOp" if view else "Shuffle")
        self.done[-1] = msgspec.structs.replace(self.done[-1], follows="view" if view else self.done[-1].follows)

    def _moves_nothing(self, node: Node) -> bool:
        """Whether a Transpose leaves the order of values in memory: only dimensions of one change places."""
        dims = self._dims(node.inputs[0])
        order = node.attribute("perm") or tuple(reversed(range(len(dims))))
        kept = [axis for axis in order if axis < len(dims) and dims[axis] != 1]
        return bool(kept == sorted(kept))

    def _is_value(self, read: Read) -> bool:
        return self.flow.quantization(read) is not None or self._type(read.tensor) in _FLOATS

    def _concat(self, group: Group) -> None:
        reads = [r for _, r in self.flow.inputs(group.core)]
        if not reads or not all(self._is_value(r) for r in reads):
            self._other(group)
            return
        quantizations = {self.flow.quantization(r) for r in reads}
        form = quantizations.pop() if len(quantizations) == 1 else self.flow.wanted.get(group.output)
        layout = self._layout_of(group, reads)
        inputs = [self._quantized(r, form, layout) if form else self._float(r) for r in reads]
        dtype = form.dtype if form else inputs[0].dtype
        inputs = inputs if form else [self._converted(i, dtype, inputs[0].format) for i in inputs]
        made = self._hold(group.output, dtype, inputs[0].format, form or "")
        copied = [(r, i) for r, i in zip(reads, inputs, strict=True) if i.name == r.tensor and not self._in_place(r.tensor)]
        for read, held in copied:
            part = msgspec.structs.replace(held, name=group.output)
            self._layer("Reformat", f"{read.tensor} copy", "concat", ([held], [part]), [group.core.label])
        self.written.add(made.name)

    def _in_place(self, tensor: str) -> bool:
        readers = len(self.flow.plain.get(tensor, ())) + len(self.flow.quantized.get(tensor, ()))
        return tensor in self.written and readers == 1 and tensor not in self.flow.outputs

    def _wrote(self, *tensors: str) -> None:
        self.written.update(tensors)

    def _pointwise(self, group: Group) -> None:
        inside = {o for n in group.nodes for o in n.outputs}
        reads = list(dict.fromkeys(r for n in group.nodes for _, r in self.flow.inputs(n) if r.tensor not in inside or r.quantization))
        if len(reads) == 1 and self.flow.quantization(reads[0]) and all(self.flow.commutes(n) for n in group.nodes):
            self._commuting(group, reads, "PointWiseV2")
            return
        wanted = self.flow.wanted.get(group.output)
        inputs = [self._pointwise_input(r, wanted is not None) for r in reads]
        layout = max(inputs, key=lambda h: len(h.described().dims) and h.described().bytes).format if inputs else LINEAR
        full = self._dims(group.output)
        inputs = [self._converted(i, "", layout) if i.dims == full else i for i in inputs]
        if wanted:
            made = self._hold(group.output, wanted.dtype, layout, wanted)
        else:
            made = self._hold(group.output, self._pointwise_type(group.output, inputs), layout)
        name = group.nodes[0].label if len(group.nodes) == 1 else f"PWN({', '.join(n.label for n in group.nodes)})"
        rule = "quantized-pointwise" if wanted else "pointwise"
        self._layer("PointWiseV2", name, rule, (inputs, [made]), [n.label for n in group.nodes])
        self._wrote(group.output)

    def _pointwise_input(self, read: Read, int8_too: bool) -> _Held:
        quantization = self.flow.quantization(read)
        if quantization and int8_too:
            return self._quantized(read, quantization, "")
        return self._float(read)

    def _pointwise_type(self, tensor: str, inputs: list[_Held]) -> str:
        own = self._type(tensor)
        if not self.allow_fp16 or own != FLOAT:
            return own
        return next((i.dtype for i in inputs if i.dtype in _FLOATS), own)

    def _other(self, group: Group) -> None:
        node = group.core
        reads = [r for _, r in self.flow.inputs(node)]
        moved = self.flow.moved_inputs(node) if self.flow.commutes(node) else ()
        if moved and len(moved) == len(reads) and all(self._is_value(r) for r in moved):
            self._commuting(group, list(moved), _KINDS.get(node.op, node.op))
            return
        inputs = [self._float(r, "", LINEAR) for r in reads]
        outputs = [self._hold(o, self._pointwise_type(o, inputs), LINEAR) for n in group.nodes for o in n.outputs if o]
        self._layer(_KINDS.get(node.op, node.op), self._name(group), "alone", (inputs, outputs), [n.label for n in group.nodes])
        self._wrote(*(o.name for o in outputs))

    def _finish(self, name: str) -> None:
        """Leave a graph output in the type that the model gives it, in rows."""
        read = self.flow.read(name)
        if read.quantization and self._type(name) not in _FLOATS:
            self._quantized(read, read.quantization, LINEAR)
        else:
            self._float(read, self._type(name), LINEAR)


#: Names of layers as TensorRT's inspector writes them.
_KINDS = {
    "Softmax": "SoftMaxV2", "Resize": "Resize", "Upsample": "Resize", "Split": "Slice", "Slice": "Slice", "Pad": "Slice", "Gather": "Gather",
    **{op: "Reduce" for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd")},
}  # fmt: skip
