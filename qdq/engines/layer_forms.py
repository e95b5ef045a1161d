"""Forms of layer in the vocabulary of the kernel tables (docs/kernels.md)."""

from __future__ import annotations

from typing import Any

import msgspec

#: A form as the kernel tables hold it: keys that are left out have their defaults.
LayerForm = dict[str, Any]


class FullForm(msgspec.Struct, frozen=True):
    """A form with all keys; the defaults are those of the kernel tables."""

    operator: str
    graph: str = "float32"
    operands: str = "constant"
    spatial: int = 2
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: str = "none"
    channels: int = 32
    outputs: int = 64
    plane: str = "wide"
    rows: int = 32
    batched: str = "none"
    scales: str = "usual"
    #: The values that share a scale of a weight in INT4, 0 for other weights.
    block: int = 0
    #: Whether such a weight has an odd number of output channels, and more than one.
    odd: int = 0
    padded: int = 0
    counted: int = 0
    #: Whether a Gemm has a bias.
    bias: int = 0
    #: Attributes of a Gemm, None where the node has no such attribute.
    transA: int | None = None
    transB: int | None = None
    alpha: float | None = None
    beta: float | None = None

    @property
    def has_constant_weight(self) -> bool:
        """Whether the second operand is a constant."""
        return self.operands == "constant"


def complete_form(form: LayerForm) -> FullForm:
    """Return a form with the defaults of its operator for the keys that it leaves out."""
    if form["operator"] == "ConvTranspose":
        return FullForm(**{"kernel": 2, "stride": 2, **form})
    return FullForm(**form)
