"""The forms of layer that `qdq probe` measures.

The forms are a star, not a product: around the default form of an operator each factor is varied
alone, and with another factor only where both determine one kernel choice:

- groups with channels, because channels per group determine how values are packed; with stride,
  kernel and dilation, because depthwise convolutions have separate kernels;
- kernel 1 and a plane of one point with channels, because such layers are small matrix products, or
  become generated kernels (observed in PP-OCR's classifier: 1x1, 2 channels, 1x1 plane);
- kernel with stride for pools, because averaging kernels exist for single windows only;
- both sizes of a matrix product where one is small, and the number of rows (one row is a GEMV).

All forms are measured for FP32 and FP16 graphs. FP8 is measured for the weighted operators, and
INT4 for matrix products with a constant weight of one to four blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from qdq.engines.layer_forms import LayerForm
from qdq.graph.operators import MATRIX_PRODUCTS, RECURRENT, WEIGHTED

_GRAPHS = ("float32", "float16")
_OPERANDS = ("constant", "computed")
_SPLIT = ("grouped", "depthwise")
_GROUPS = ("none", *_SPLIT)
_BATCHES = ("data", "both", "heads")
_CONVOLUTION_SCALES = ("usual", "tensor", "axis 1")
_PRODUCT_SCALES = ("usual", "tensor", "wrong axis")
_FLAGS = (0, 1)
_FACTORS = (0.5, 1.0)
_CHANNELS = (1, 2, 3, 4, 8, 10, 16, 32, 64, 65)
_GROUPED_CHANNELS = (2, 4, 6, 8, 10, 16, 32, 64)
_DEPTHWISE_CHANNELS = (2, 3, 4, 8, 10, 16, 32, 64, 65)
_SIZES = (1, 2, 3, 4, 8, 10, 15, 16, 17, 32, 64)
_SPATIAL = (1, 2, 3)
_KERNELS = (1, 2, 3, 5, 7)
_POOL_KERNELS = (2, 3, 4, 5, 6, 7, 8)
_POOL_KERNELS_3D = (2, 3)
_STRIDES = (1, 2, 3)
_DILATIONS = (1, 2, 3)
_POINTWISE = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSwish",
    "Add",
    "Mul",
    "Concat",
    "Resize",
    "Transpose",
    "Softmax",
    "LayerNormalization",
)
_BLOCK_OPERATORS = ("Gemm", "MatMul")
_BLOCKS = (64, 128)
_BLOCK_COUNTS = (1, 2, 4)
_BLOCK_ROWS = (1, 2, 32)
_REDUCING = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean")

#: Operators that are measured, in the order of a table's rows.
OPERATORS = (*WEIGHTED, "AveragePool", "MaxPool", *_REDUCING, *_POINTWISE)


def list_forms(pairs: str = "int8") -> tuple[LayerForm, ...]:
    """Return the forms probed with ``int8``, ``fp8`` or ``int4`` pairs, without duplicates."""
    forms: dict[str, LayerForm] = {}
    for graph in _GRAPHS:
        for form in _FORMS[pairs]():
            form_of_graph = {"operator": form["operator"], "graph": graph, **form}
            forms.setdefault(repr(form_of_graph), form_of_graph)
    return tuple(forms.values())


def _quantizable_forms() -> Iterator[LayerForm]:
    """Yield the forms that are measured with INT8 pairs."""
    yield from _plain_convolutions()
    yield from _grouped_convolutions()
    yield from _point_convolutions()
    yield from _vary("Conv", scales=_CONVOLUTION_SCALES)
    yield from _deconvolutions()
    yield from _products()
    yield from _recurrent_layers()
    yield from _pools()
    yield from _reductions()
    for operator in _POINTWISE:
        yield {"operator": operator}


def _weighted_forms() -> Iterator[LayerForm]:
    """Yield the forms that are measured with FP8 pairs: factors that decide about INT8 only."""
    for operator in ("Conv", "ConvTranspose"):
        yield from _convolution_groups(operator)
    yield from _vary("Conv", kernel=(1, 3), channels=(1, 3, 4, 8, 10, 16, 64))
    yield from _vary("Conv", plane=["point"], kernel=[1], channels=(2, 8, 16))
    yield from _vary("Conv", scales=_CONVOLUTION_SCALES)
    for operator in MATRIX_PRODUCTS:
        yield from _vary(operator, operands=_OPERANDS, channels=(4, 8, 10, 15, 16, 32, 64))
        yield from _vary(operator, outputs=(1, 4, 8, 15, 16, 64))
        yield from _vary(operator, rows=(1, 32), scales=_PRODUCT_SCALES)
    yield from _vary("MatMul", batched=_BATCHES, operands=_OPERANDS)
    yield from _vary("Einsum", operands=_OPERANDS)
    yield from _recurrent_layers()


def _block_forms() -> Iterator[LayerForm]:
    """Yield the forms that are measured with INT4 weights.

    The number of blocks is varied with each other factor, because a row of more keys decides alone.
    """
    for operator, block in product(_BLOCK_OPERATORS, _BLOCKS):
        blocks: dict[str, Sequence[object]] = {
            "block": [block],
            "channels": [block * count for count in _BLOCK_COUNTS],
        }
        yield from _vary(operator, **blocks)
        yield from _vary(operator, **blocks, odd=_FLAGS)
        yield from _vary(operator, **blocks, odd=_FLAGS, rows=_BLOCK_ROWS)
        if operator == "MatMul":
            yield from _vary(operator, **blocks, batched=["data"])
        else:
            yield from _vary(operator, **blocks, transB=_FLAGS)


def _vary(operator: str, **factors: Sequence[object]) -> Iterator[LayerForm]:
    """Yield a form for each combination of the factors' values."""
    for values in product(*factors.values()):
        yield {"operator": operator, **dict(zip(factors, values, strict=True))}


def _convolution_groups(operator: str) -> Iterator[LayerForm]:
    for operands in _OPERANDS:
        yield from _vary(operator, operands=[operands], spatial=_SPATIAL, groups=_GROUPS)


def _plain_convolutions() -> Iterator[LayerForm]:
    yield from _convolution_groups("Conv")
    yield from _vary("Conv", spatial=_SPATIAL, kernel=_KERNELS)
    yield from _vary("Conv", spatial=_SPATIAL, stride=_STRIDES)
    yield from _vary("Conv", spatial=_SPATIAL, dilation=_DILATIONS)
    yield from _vary("Conv", spatial=_SPATIAL, channels=_CHANNELS)
    yield from _vary("Conv", spatial=_SPATIAL, outputs=_CHANNELS)
    yield from _vary("Conv", kernel=[1], channels=_CHANNELS)


def _grouped_convolutions() -> Iterator[LayerForm]:
    yield from _vary("Conv", groups=["grouped"], channels=_GROUPED_CHANNELS)
    yield from _vary("Conv", groups=["depthwise"], channels=_DEPTHWISE_CHANNELS)
    yield from _vary("Conv", groups=_SPLIT, kernel=_KERNELS)
    yield from _vary("Conv", groups=_SPLIT, stride=(1, 2))
    yield from _vary("Conv", groups=_SPLIT, dilation=(1, 2))


def _point_convolutions() -> Iterator[LayerForm]:
    plane = ["point"]
    yield from _vary("Conv", plane=plane, kernel=(1, 3))
    yield from _vary("Conv", plane=plane, kernel=[1], channels=_CHANNELS)
    yield from _vary("Conv", plane=plane, kernel=[1], outputs=_CHANNELS)
    yield from _vary("Conv", plane=plane, groups=_SPLIT)


def _deconvolutions() -> Iterator[LayerForm]:
    yield from _convolution_groups("ConvTranspose")
    yield from _vary("ConvTranspose", spatial=_SPATIAL, kernel=(2, 3, 4), stride=(1, 2))
    yield from _vary("ConvTranspose", spatial=_SPATIAL, scales=("tensor", "axis 0", "axis 1"))
    yield from _vary("ConvTranspose", channels=_CHANNELS)
    yield from _vary("ConvTranspose", outputs=(1, 3, 8, 16, 64))


def _products() -> Iterator[LayerForm]:
    for operator in MATRIX_PRODUCTS:
        for operands in _OPERANDS:
            yield from _vary(operator, operands=[operands], channels=_SIZES)
            yield from _vary(operator, operands=[operands], outputs=_SIZES)
            yield from _vary(operator, operands=[operands], rows=(1, 2, 4, 8, 32))
        yield from _vary(operator, rows=(1, 32), channels=(1, 4, 16), outputs=(1, 4, 16))
        yield from _vary(operator, scales=_PRODUCT_SCALES)
    yield from _vary("Gemm", transA=_FLAGS, transB=_FLAGS)
    yield from _vary("Gemm", operands=["computed"], transA=_FLAGS, transB=_FLAGS)
    yield from _vary("Gemm", bias=_FLAGS, alpha=_FACTORS, beta=_FACTORS)
    yield from _vary("MatMul", batched=_BATCHES, operands=_OPERANDS)
    yield from _vary("MatMul", batched=["heads"], operands=["computed"], channels=_SIZES)
    yield from _vary("MatMul", batched=["heads"], operands=["computed"], outputs=_SIZES)
    yield from _vary("Einsum", operands=_OPERANDS)


def _recurrent_layers() -> Iterator[LayerForm]:
    for operator in RECURRENT:
        yield from _vary(operator, scales=("usual", "tensor"), rows=(1, 32))


def _pools() -> Iterator[LayerForm]:
    for spatial in _SPATIAL:
        kernels = _POOL_KERNELS if spatial < max(_SPATIAL) else _POOL_KERNELS_3D
        yield from _vary(
            "AveragePool", spatial=[spatial], counted=_FLAGS, kernel=kernels, stride=_STRIDES
        )
        yield from _vary("MaxPool", spatial=[spatial], kernel=kernels, stride=_STRIDES)
    yield from _vary(
        "AveragePool", padded=[1], counted=_FLAGS, kernel=_POOL_KERNELS, stride=_STRIDES
    )
    yield from _vary("AveragePool", counted=_FLAGS, kernel=[3], stride=[1], channels=_CHANNELS)
    yield from _vary("MaxPool", padded=_FLAGS, kernel=[3], stride=(1, 2))
    yield from _vary("MaxPool", channels=_CHANNELS)


def _reductions() -> Iterator[LayerForm]:
    for operator in _REDUCING:
        yield from _vary(operator, spatial=_SPATIAL)
        yield from _vary(operator, channels=_CHANNELS)


#: The forms of each kind of pairs, without the type of the graph.
_FORMS: dict[str, Callable[[], Iterator[LayerForm]]] = {
    "int8": _quantizable_forms,
    "fp8": _weighted_forms,
    "int4": _block_forms,
}
