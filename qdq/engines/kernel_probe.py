"""Measurement of kernel tables: the forms of layer that a compiler runs in INT8, FP8 or INT4.

One-layer networks of the forms in `probed_forms` are compiled for a compute capability, and the
layers of their engines are read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import onnx
import yaml

from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.layer_forms import LayerForm
from qdq.engines.one_layer_models import LAYER, make_network
from qdq.engines.probed_forms import OPERATORS, list_forms
from qdq.engines.rtx_compiler import Compiler
from qdq.engines.tensorrt import compile_tensorrt
from qdq.graph.operators import RECURRENT, WEIGHTED
from qdq.rules.kernel_tables import KernelRow, KernelTable, listed_values
from qdq.target import Target

__all__ = [
    "OPERATORS",
    "ProbeProgress",
    "list_forms",
    "measure_form",
    "merge_rows",
    "probe",
    "table_yaml",
]

#: Kinds of engine layer that compute a network's layer; others prepare its data or finish its
#: result.
_COMPUTING = ("avgpool", "correlation", "deconv", "gemm", "maxpool", "runtime_fusion")

#: The engine's data type of each kind of pairs.
_STORED = {"int8": "Int8", "fp8": "FP8", "int4": "Int4"}

_LONG_LINE = 10_000

#: Called after each network with the number done and the number of all that are known so far.
ProbeProgress = Callable[[int, int], None]


class _Request(msgspec.Struct, frozen=True):
    """A network to build: the form of its layer and the kind of its pairs."""

    form: LayerForm
    pairs: str


class _Answer(msgspec.Struct, frozen=True):
    """The measured row of a network."""

    row: KernelRow
    pairs: str
    compiler: str


def measure_form(form: LayerForm, target: Target, pairs: str = "int8") -> KernelRow:
    """Return the row of one form; raises CompilerError where the compiler is missing."""
    with _Builders() as builders:
        return _measure(_Request(form, pairs), target, builders).row


def probe(
    target: Target,
    operators: Iterable[str] = (),
    jobs: int = 1,
    progress: ProbeProgress = lambda done, total: None,
) -> KernelTable:
    """Return the kernel table of a target, measured form by form with `jobs` compilers at once.

    `operators` limits the table to some operators. Where the default form of an operator is
    refused with FP8 pairs, its other forms are not built with them. Raises CompilerError where the
    compiler is missing.
    """
    requested_operators = set(operators) or set(OPERATORS)
    requests: list[_Request] = []
    for pairs in ("int8", "int4"):
        requests.extend(_list_requests(requested_operators, pairs))
    default_requests = _list_default_requests(requested_operators)
    requests.extend(default_requests)
    with _Builders() as builders, ThreadPoolExecutor(max_workers=jobs) as pool:
        measurements = _Measurements(target, builders, pool, progress)
        measurements.measure(requests)
        accepted_forms = []
        for request in default_requests:
            if not measurements.is_refused(request):
                accepted_forms.append(request.form)
        for request in _list_fp8_requests(accepted_forms):
            if request not in default_requests:
                requests.append(request)
        measurements.measure(requests)
    return measurements.make_table()


def table_yaml(table: KernelTable) -> str:
    """Return the text of a table's file, with one line per row."""
    head = {
        "backend": table.backend,
        "sm": table.sm,
        "compiler": table.compiler,
        "networks": table.networks,
    }
    text = yaml.safe_dump(head, sort_keys=False, width=1000)
    for pairs, rows in (("int8", table.int8), ("fp8", table.fp8), ("int4", table.int4)):
        if rows:
            text += f"{pairs}:\n"
        for row in rows:
            text += f"- {_format_row(row)}\n"
    return text


def merge_rows(rows: Iterable[KernelRow]) -> tuple[KernelRow, ...]:
    """Return fewer rows that hold the same results.

    Where all but one key of several rows agree, the values of that key become a list.
    """
    rows_by_layer = {repr(row.layer): row for row in rows}
    merged = list(rows_by_layer.values())
    names: dict[str, None] = {}
    for row in merged:
        names.update(dict.fromkeys(reversed(row.layer)))
    names.pop("operator", None)
    names.pop("graph", None)
    for name in (*names, "graph"):
        merged = list(_merge_by_key(name, merged))
    merged.sort(key=lambda row: OPERATORS.index(row.layer["operator"]))
    return tuple(merged)


def shorten_refusal(failure: str) -> str:
    """Return the end of the compiler's message, without the name of the operation.

    The whole message if its end is a single word.
    """
    end = failure.rsplit(": ", 1)[-1]
    return end if " " in end else failure


class _Builders:
    """One compiler for each thread that builds."""

    def __init__(self) -> None:
        self._thread = threading.local()
        self._compilers: list[Compiler] = []

    def __enter__(self) -> _Builders:
        return self

    def __exit__(self, *_: object) -> None:
        for compiler in self._compilers:
            compiler.__exit__()

    def build(self, model: onnx.ModelProto, target: Target) -> Engine:
        """Return the engine of the target's compiler; raises CompilerError where it is missing."""
        if target.backend == "trt":
            return compile_tensorrt(model, target)
        if not hasattr(self._thread, "compiler"):
            self._thread.compiler = Compiler()
            self._compilers.append(self._thread.compiler)
        engine: Engine = self._thread.compiler.build(model, target)
        return engine


class _Measurements:
    """The answers to all requests so far."""

    def __init__(
        self,
        target: Target,
        builders: _Builders,
        pool: ThreadPoolExecutor,
        progress: ProbeProgress,
    ) -> None:
        self._target = target
        self._builders = builders
        self._pool = pool
        self._progress = progress
        self._answers: dict[str, _Answer] = {}

    def measure(self, requests: list[_Request]) -> None:
        """Answer the requests that have no answer yet."""
        missing = [request for request in requests if repr(request) not in self._answers]
        answers = self._pool.map(self._answer, missing)
        for request, answer in zip(missing, answers, strict=True):
            key = repr(request)
            self._answers[key] = answer
            self._progress(len(self._answers), len(requests))

    def is_refused(self, request: _Request) -> bool:
        """Whether the compiler refused an answered request."""
        answer = self._answers[repr(request)]
        return answer.row.runs == "refused"

    def make_table(self) -> KernelTable:
        """Return the kernel table of all answers."""
        answers = self._answers.values()
        compilers = (answer.compiler for answer in answers if answer.row.runs != "refused")
        return KernelTable(
            backend=self._target.backend,
            sm=self._target.sm,
            compiler=next(compilers, ""),
            networks=len(answers),
            int8=self._merge_answers("int8"),
            fp8=self._merge_answers("fp8"),
            int4=self._merge_answers("int4"),
        )

    def _merge_answers(self, pairs: str) -> tuple[KernelRow, ...]:
        answers = self._answers.values()
        return merge_rows(answer.row for answer in answers if answer.pairs == pairs)

    def _answer(self, request: _Request) -> _Answer:
        return _measure(request, self._target, self._builders)


def _list_requests(operators: set[str], pairs: str) -> Iterator[_Request]:
    """Yield a request for each form of some operators with a kind of pairs."""
    for form in list_forms(pairs):
        if form["operator"] in operators:
            yield _Request(form, pairs)


def _list_default_requests(operators: set[str]) -> list[_Request]:
    """Return a request for the default form of each operator and graph type with FP8 pairs."""
    requests: dict[str, _Request] = {}
    for form in list_forms("fp8"):
        if form["operator"] in operators:
            default_form = _default_of(form)
            requests[repr(default_form)] = _Request(default_form, "fp8")
    return list(requests.values())


def _list_fp8_requests(default_forms: Container[LayerForm]) -> Iterator[_Request]:
    """Yield the requests with FP8 pairs of the operators and graph types of default forms."""
    for form in list_forms("fp8"):
        if _default_of(form) in default_forms:
            yield _Request(form, "fp8")


def _default_of(form: LayerForm) -> LayerForm:
    """Return the default form of a form's operator and graph type."""
    return {"operator": form["operator"], "graph": form["graph"]}


def _merge_by_key(name: str, rows: Iterable[KernelRow]) -> Iterator[KernelRow]:
    """Yield rows in which those that differ in one key only are merged."""
    groups: dict[str, list[KernelRow]] = {}
    for row in rows:
        other_keys = {key: value for key, value in row.layer.items() if key != name}
        group_key = repr((other_keys, name in row.layer, row.runs, row.seen))
        groups.setdefault(group_key, []).append(row)
    for group in groups.values():
        first = group[0]
        layer = first.layer
        if name in layer:
            layer = {**layer, name: _merge_values(name, group)}
        yield KernelRow(layer, first.runs, first.seen)


def _merge_values(name: str, rows: Iterable[KernelRow]) -> Any:
    """Return the values of a key in several rows: a list, or the only value."""
    values: list[Any] = []
    for row in rows:
        values.extend(listed_values(row.layer.get(name)))
    if len(values) == 1:
        return values[0]
    return values


def _format_row(row: KernelRow) -> str:
    """Return the YAML of a row in one line."""
    text = yaml.safe_dump(
        msgspec.to_builtins(row),
        sort_keys=False,
        default_flow_style=True,
        width=_LONG_LINE,
        allow_unicode=True,
    )
    return text.strip()


def _measure(request: _Request, target: Target, builders: _Builders) -> _Answer:
    """Build a network and return its row; for a refused one also build the float layer."""
    form = request.form
    engine = builders.build(make_network(form, request.pairs), target)
    if engine.failure:
        float_engine = builders.build(make_network(form, "none"), target)
        comparison = "but does without Q/DQ"
        if float_engine.failure:
            comparison = "nor without Q/DQ"
        refusal = f"{shorten_refusal(engine.failure)} ({comparison})"
        return _Answer(KernelRow(form, "refused", refusal), request.pairs, engine.compiler)
    layers = _find_computing_layers(engine, form)
    runs = _classify(form, layers, request.pairs)
    description = _describe_layers(form, layers, _STORED[request.pairs])
    return _Answer(KernelRow(form, runs, description), request.pairs, engine.compiler)


def _find_computing_layers(engine: Engine, form: LayerForm) -> list[EngineLayer]:
    """Return the engine layers that compute the measured one.

    A generated kernel counts only where there is no other. The compiler splits a recurrent layer
    and loses its name: its products are the matrix products and the generated kernels that
    multiply and sum.
    """
    if form["operator"] in RECURRENT:
        return [layer for layer in engine.layers if _is_recurrent_product(layer)]
    carrying = [layer for layer in engine.layers if LAYER in layer.nodes]
    computing = [layer for layer in carrying if layer.kind in _COMPUTING]
    return computing or carrying


def _is_recurrent_product(layer: EngineLayer) -> bool:
    return layer.kind in _COMPUTING or "MulSum" in layer.name


def _classify(form: LayerForm, layers: list[EngineLayer], pairs: str) -> str:
    """Return the `KernelRow.runs` of the layers that compute a form."""
    stored = _STORED[pairs]
    if form.get("block"):
        return pairs if all(layer.reads_constant(stored) for layer in layers) else "float"
    if form["operator"] in WEIGHTED:
        products = {layer.multiplies(stored) for layer in layers}
        if True not in products:
            return "float"
        return pairs if products == {True} else f"{pairs}-in-part"
    types: set[str] = set()
    for layer in layers:
        types.update(tensor.dtype for tensor in (*layer.inputs, *layer.outputs))
    if types != {stored}:
        return "float"
    if any("Cast" in layer.name for layer in layers):
        return f"{pairs}-in-memory"
    return pairs


def _describe_layers(form: LayerForm, layers: list[EngineLayer], stored: str) -> str:
    """Return the `KernelRow.seen` of the layers that compute a form."""
    descriptions: dict[str, None] = {}
    for layer in layers:
        description = _describe_layer(layer)
        if form["operator"] in RECURRENT and not layer.multiplies(stored):
            description = f"{layer.kind} in float"
        descriptions[description] = None
    if not descriptions and form["operator"] not in RECURRENT:
        return "no layer of the engine names it"
    return " + ".join(descriptions)


def _describe_layer(layer: EngineLayer) -> str:
    """Return the kind of an engine layer and the types of its data, small weight and result."""
    types = [tensor.dtype for tensor in layer.inputs]
    for constant in layer.constants:
        if constant.dtype in _STORED.values():
            types.append(constant.dtype)
            break
    result_types = ",".join(tensor.dtype for tensor in layer.outputs)
    return f"{layer.kind} {','.join(types)} -> {result_types}"
