"""One-layer networks -> kernel tables: which forms of layer a compiler runs in INT8 or FP8 on a compute capability.

The forms are a star, not a product: around a usual layer (`onelayer.USUAL`) each factor is varied
alone, and with another only where the two meet in one kernel choice:

- groups with channels, because channels per group decide how values are packed; with stride, kernel
  and dilation, because depthwise convolutions have kernels of their own;
- kernel 1 and a plane of one point with channels, because such layers are small matrix products, or
  are turned into generated kernels (seen in PP-OCR's classifier: 1x1, 2 channels, 1x1 plane);
- kernel with stride for pools, because averaging kernels exist for single windows only;
- both sizes of a matrix product where one is small, and the number of rows (one row is a GEMV).

Everything is measured for FP32 and FP16 graphs. FP8 is measured for the weighted operators.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import msgspec
import onnx
import yaml

from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.one_layer_models import LAYER, LayerForm, make_network
from qdq.engines.rtx_compiler import Compiler
from qdq.engines.tensorrt import compile_tensorrt
from qdq.graph.operators import MATRIX_PRODUCTS, RECURRENT, WEIGHTED
from qdq.rules.kernel_tables import KernelRow, KernelTable, listed_values
from qdq.target import Target

_GRAPHS = ("float32", "float16")
_CHANNELS = (1, 2, 3, 4, 8, 10, 16, 32, 64, 65)
_SIZES = (1, 2, 3, 4, 8, 10, 15, 16, 17, 32, 64)
_SPATIAL = (1, 2, 3)
_POINTWISE = (
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "Add", "Mul", "Concat", "Resize", "Transpose", "Softmax", "LayerNormalization",
)  # fmt: skip

#: Kinds of engine layer that compute a network's layer; others prepare its data or finish its result.
_COMPUTING = ("avgpool", "correlation", "deconv", "gemm", "maxpool", "runtime_fusion")
_STORED = {"int8": "Int8", "fp8": "FP8"}

#: Operators that are measured, in the order of a table's rows.
OPERATORS = (
    *WEIGHTED,
    "AveragePool",
    "MaxPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    *_POINTWISE,
)
ProbeProgress = Callable[[int, int], None]


class _Asked(msgspec.Struct, frozen=True):
    form: LayerForm
    pairs: str


class _Answer(msgspec.Struct, frozen=True):
    row: KernelRow
    pairs: str
    compiler: str


def list_forms(pairs: str = "int8") -> tuple[LayerForm, ...]:
    """Return the forms that are probed with ``int8`` or ``fp8`` pairs, in the vocabulary of `kernels.layer_form`."""
    parts = (
        (_convolutions, _deconvolutions, _products, _recurrent, _pools, _others)
        if pairs == "int8"
        else (_weighted, _recurrent)
    )
    made = [
        {"operator": form["operator"], "graph": graph, **form}
        for graph in _GRAPHS
        for part in parts
        for form in part()
    ]
    return tuple({repr(form): form for form in made}.values())


def _varied(operator: str, **factors: Sequence[object]) -> Iterator[LayerForm]:
    """Yield a form for each combination of the factors' values."""
    for values in product(*factors.values()):
        yield {"operator": operator, **dict(zip(factors, values, strict=True))}


def _convolutions() -> Iterator[LayerForm]:
    for operands in ("constant", "computed"):
        yield from _varied(
            "Conv", operands=[operands], spatial=_SPATIAL, groups=("none", "grouped", "depthwise")
        )
    yield from _varied("Conv", spatial=_SPATIAL, kernel=(1, 2, 3, 5, 7))
    yield from _varied("Conv", spatial=_SPATIAL, stride=(1, 2, 3))
    yield from _varied("Conv", spatial=_SPATIAL, dilation=(1, 2, 3))
    yield from _varied("Conv", spatial=_SPATIAL, channels=_CHANNELS)
    yield from _varied("Conv", spatial=_SPATIAL, outputs=_CHANNELS)
    yield from _varied("Conv", kernel=[1], channels=_CHANNELS)
    yield from _varied("Conv", groups=["grouped"], channels=(2, 4, 6, 8, 10, 16, 32, 64))
    yield from _varied("Conv", groups=["depthwise"], channels=(2, 3, 4, 8, 10, 16, 32, 64, 65))
    yield from _varied("Conv", groups=("grouped", "depthwise"), kernel=(1, 2, 3, 5, 7))
    yield from _varied("Conv", groups=("grouped", "depthwise"), stride=(1, 2))
    yield from _varied("Conv", groups=("grouped", "depthwise"), dilation=(1, 2))
    yield from _varied("Conv", plane=["point"], kernel=(1, 3))
    yield from _varied("Conv", plane=["point"], kernel=[1], channels=_CHANNELS)
    yield from _varied("Conv", plane=["point"], kernel=[1], outputs=_CHANNELS)
    yield from _varied("Conv", plane=["point"], groups=("grouped", "depthwise"))
    yield from _varied("Conv", scales=("usual", "tensor", "axis 1"))


def _deconvolutions() -> Iterator[LayerForm]:
    for operands in ("constant", "computed"):
        yield from _varied(
            "ConvTranspose",
            operands=[operands],
            spatial=_SPATIAL,
            groups=("none", "grouped", "depthwise"),
        )
    yield from _varied("ConvTranspose", spatial=_SPATIAL, kernel=(2, 3, 4), stride=(1, 2))
    yield from _varied("ConvTranspose", spatial=_SPATIAL, scales=("tensor", "axis 0", "axis 1"))
    yield from _varied("ConvTranspose", channels=_CHANNELS)
    yield from _varied("ConvTranspose", outputs=(1, 3, 8, 16, 64))


def _products() -> Iterator[LayerForm]:
    for operator in MATRIX_PRODUCTS:
        for operands in ("constant", "computed"):
            yield from _varied(operator, operands=[operands], channels=_SIZES)
            yield from _varied(operator, operands=[operands], outputs=_SIZES)
            yield from _varied(operator, operands=[operands], rows=(1, 2, 4, 8, 32))
        yield from _varied(operator, rows=(1, 32), channels=(1, 4, 16), outputs=(1, 4, 16))
        yield from _varied(operator, scales=("usual", "tensor", "wrong axis"))
    yield from _varied("Gemm", transA=(0, 1), transB=(0, 1))
    yield from _varied("Gemm", operands=["computed"], transA=(0, 1), transB=(0, 1))
    yield from _varied("Gemm", bias=(0, 1), alpha=(0.5, 1.0), beta=(0.5, 1.0))
    yield from _varied(
        "MatMul", batched=("data", "both", "heads"), operands=("constant", "computed")
    )
    yield from _varied("MatMul", batched=["heads"], operands=["computed"], channels=_SIZES)
    yield from _varied("MatMul", batched=["heads"], operands=["computed"], outputs=_SIZES)
    yield from _varied("Einsum", operands=("constant", "computed"))


def _weighted() -> Iterator[LayerForm]:
    """Yield the forms that are measured with FP8 pairs: the factors that decide about INT8, and those alone."""
    for operator, operands in product(("Conv", "ConvTranspose"), ("constant", "computed")):
        yield from _varied(
            operator, operands=[operands], spatial=_SPATIAL, groups=("none", "grouped", "depthwise")
        )
    yield from _varied("Conv", kernel=(1, 3), channels=(1, 3, 4, 8, 10, 16, 64))
    yield from _varied("Conv", plane=["point"], kernel=[1], channels=(2, 8, 16))
    yield from _varied("Conv", scales=("usual", "tensor", "axis 1"))
    for operator in MATRIX_PRODUCTS:
        yield from _varied(
            operator, operands=("constant", "computed"), channels=(4, 8, 10, 15, 16, 32, 64)
        )
        yield from _varied(operator, outputs=(1, 4, 8, 15, 16, 64))
        yield from _varied(operator, rows=(1, 32), scales=("usual", "tensor", "wrong axis"))
    yield from _varied(
        "MatMul", batched=("data", "both", "heads"), operands=("constant", "computed")
    )
    yield from _varied("Einsum", operands=("constant", "computed"))


def _recurrent() -> Iterator[LayerForm]:
    for operator in RECURRENT:
        yield from _varied(operator, scales=("usual", "tensor"), rows=(1, 32))


def _pools() -> Iterator[LayerForm]:
    for spatial in _SPATIAL:
        kernels = (2, 3, 4, 5, 6, 7, 8) if spatial < max(_SPATIAL) else (2, 3)
        yield from _varied(
            "AveragePool", spatial=[spatial], counted=(0, 1), kernel=kernels, stride=(1, 2, 3)
        )
        yield from _varied("MaxPool", spatial=[spatial], kernel=kernels, stride=(1, 2, 3))
    yield from _varied(
        "AveragePool", padded=[1], counted=(0, 1), kernel=(2, 3, 4, 5, 6, 7, 8), stride=(1, 2, 3)
    )
    yield from _varied("AveragePool", counted=(0, 1), kernel=[3], stride=[1], channels=_CHANNELS)
    yield from _varied("MaxPool", padded=(0, 1), kernel=[3], stride=(1, 2))
    yield from _varied("MaxPool", channels=_CHANNELS)
    for operator in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
        yield from _varied(operator, spatial=_SPATIAL)
        yield from _varied(operator, channels=_CHANNELS)


def _others() -> Iterator[LayerForm]:
    for operator in _POINTWISE:
        yield {"operator": operator}


def measure_form(form: LayerForm, target: Target, pairs: str = "int8") -> KernelRow:
    """Return what the compiler makes of one layer of a form; raises CompilerError where it is missing."""
    with _Builders() as builders:
        return _answer(_Asked(form, pairs), target, builders).row


def probe(
    target: Target,
    operators: Iterable[str] = (),
    jobs: int = 1,
    progress: ProbeProgress = lambda done, total: None,
) -> KernelTable:
    """Return the kernel table of a target, measured form by form with `jobs` compilers at once.

    `operators` limits it to some operators; `progress` is told how many networks of how many are
    done. Where the usual form of an operator is refused with FP8 pairs, its other forms are not
    built with them. Raises CompilerError where the compiler is missing.
    """
    wanted = set(operators)
    first = [
        _Asked(form, "int8") for form in list_forms() if not wanted or form["operator"] in wanted
    ]
    usual = {
        (form["operator"], form["graph"]): _Asked(
            {"operator": form["operator"], "graph": form["graph"]}, "fp8"
        )
        for form in list_forms("fp8")
    }
    first += [asked for (operator, _), asked in usual.items() if not wanted or operator in wanted]
    with _Builders() as builders, ThreadPoolExecutor(max_workers=jobs) as pool:
        known: dict[str, _Answer] = {}
        _ask(first, known, target, builders, pool, progress)
        accepted = [
            key
            for key, asked in usual.items()
            if repr(asked) in known and known[repr(asked)].row.runs != "refused"
        ]
        rest = [
            _Asked(form, "fp8")
            for form in list_forms("fp8")
            if (form["operator"], form["graph"]) in accepted
        ]
        _ask([*first, *rest], known, target, builders, pool, progress)
    rows = {
        pairs: merge_rows(a.row for a in known.values() if a.pairs == pairs) for pairs in _STORED
    }
    compiler = next((a.compiler for a in known.values() if a.row.runs != "refused"), "")
    return KernelTable(target.backend, target.sm, compiler, len(known), rows["int8"], rows["fp8"])


def _ask(
    asked: list[_Asked],
    known: dict[str, _Answer],
    target: Target,
    builders: _Builders,
    pool: ThreadPoolExecutor,
    progress: ProbeProgress,
) -> None:
    """Add the answers that are missing to those that are known, each under what was asked."""
    missing = [item for item in asked if repr(item) not in known]
    for item, answer in zip(
        missing, pool.map(lambda a: _answer(a, target, builders), missing), strict=True
    ):
        known[repr(item)] = answer
        progress(len(known), len(asked))


def table_yaml(table: KernelTable) -> str:
    """Return the text of a table's file: one line a row."""
    head = {name: getattr(table, name) for name in ("backend", "sm", "compiler", "networks")}
    text = yaml.safe_dump(head, sort_keys=False, width=1000)
    for pairs in _STORED:
        rows: tuple[KernelRow, ...] = getattr(table, pairs)
        text += f"{pairs}:\n" + "".join(f"- {_flow(row)}\n" for row in rows) if rows else ""
    return text


def merge_rows(rows: Iterable[KernelRow]) -> tuple[KernelRow, ...]:
    """Return rows that say the same in fewer: where all but one key agree, the values of that key become a list."""
    kept = list({repr(row.layer): row for row in rows}.values())
    names = dict.fromkeys(
        key for row in kept for key in reversed(row.layer) if key not in ("operator", "graph")
    )
    for name in (*names, "graph"):
        kept = list(_merged_by(name, kept))
    return tuple(sorted(kept, key=lambda row: OPERATORS.index(row.layer["operator"])))


def _merged_by(name: str, rows: Iterable[KernelRow]) -> Iterator[KernelRow]:
    alike: dict[str, list[KernelRow]] = {}
    for row in rows:
        rest = {key: value for key, value in row.layer.items() if key != name}
        alike.setdefault(repr((rest, name in row.layer, row.runs, row.seen)), []).append(row)
    for group in alike.values():
        values = [value for row in group for value in listed_values(row.layer.get(name))]
        together = values[0] if len(values) == 1 else values
        yield KernelRow(
            {**group[0].layer, name: together} if name in group[0].layer else group[0].layer,
            group[0].runs,
            group[0].seen,
        )


def _flow(row: KernelRow) -> str:
    return yaml.safe_dump(
        msgspec.to_builtins(row),
        sort_keys=False,
        default_flow_style=True,
        width=10_000,
        allow_unicode=True,
    ).strip()


class _Builders:
    """One compiler for each thread that builds."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._all: list[Compiler] = []

    def __enter__(self) -> _Builders:
        return self

    def __exit__(self, *_: object) -> None:
        for compiler in self._all:
            compiler.__exit__()

    def build(self, model: onnx.ModelProto, target: Target) -> Engine:
        """Return the engine that the target's compiler makes; raises CompilerError where there is none."""
        if target.backend == "trt":
            return compile_tensorrt(model, target)
        if not hasattr(self._here, "compiler"):
            self._here.compiler = Compiler()
            self._all.append(self._here.compiler)
        engine: Engine = self._here.compiler.build(model, target)
        return engine


def _answer(asked: _Asked, target: Target, builders: _Builders) -> _Answer:
    form, pairs = asked.form, asked.pairs
    engine = builders.build(make_network(form, pairs), target)
    if engine.failure:
        alone = builders.build(make_network(form, "none"), target)
        without = "nor without Q/DQ" if alone.failure else "but does without Q/DQ"
        return _Answer(
            KernelRow(form, "refused", f"{shorten_refusal(engine.failure)} ({without})"),
            pairs,
            engine.compiler,
        )
    layers = _computing(engine, form)
    seen = " + ".join(dict.fromkeys(map(_seen, layers))) or "no layer of the engine names it"
    if form["operator"] in RECURRENT:
        seen = " + ".join(
            dict.fromkeys(
                _seen(layer) if layer.multiplies(_STORED[pairs]) else f"{layer.kind} in float"
                for layer in layers
            )
        )
    return _Answer(KernelRow(form, _runs(form, layers, pairs), seen), pairs, engine.compiler)


def _computing(engine: Engine, form: LayerForm) -> list[EngineLayer]:
    """Return the engine layers that compute the measured one; a generated kernel only where there is no other.

    A recurrent layer is taken apart by the compiler and its name lost: its products are the matrix
    products and the generated kernels that multiply and sum.
    """
    if form["operator"] in RECURRENT:
        return [
            layer for layer in engine.layers if layer.kind in _COMPUTING or "MulSum" in layer.name
        ]
    carrying = [layer for layer in engine.layers if LAYER in layer.nodes]
    return [layer for layer in carrying if layer.kind in _COMPUTING] or carrying


def _runs(form: LayerForm, layers: list[EngineLayer], pairs: str) -> str:
    stored = _STORED[pairs]
    if form["operator"] in WEIGHTED:
        products = {layer.multiplies(stored) for layer in layers}
        return {frozenset({True}): pairs, frozenset({True, False}): f"{pairs}-in-part"}.get(
            frozenset(products), "float"
        )
    moved = {tensor.dtype for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    if moved != {stored}:
        return "float"
    return f"{pairs}-in-memory" if any("Cast" in layer.name for layer in layers) else pairs


def _seen(layer: EngineLayer) -> str:
    """Return an engine layer in words: its kind and the types of its data, small weight and result."""
    read = [tensor.dtype for tensor in layer.inputs]
    read += [t.dtype for t in layer.constants if t.dtype in _STORED.values()][:1]
    return f"{layer.kind} {','.join(read)} -> {','.join(tensor.dtype for tensor in layer.outputs)}"


def shorten_refusal(failure: str) -> str:
    """Return what the compiler's words come to, without the name of the operation; more where the end is one word."""
    end = failure.rsplit(": ", 1)[-1]
    return end if " " in end else failure
