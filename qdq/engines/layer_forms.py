"""Forms of layer: dictionaries in the vocabulary of the kernel tables (docs/kernels.md).

A key that is left out has its value from `default_form`.
"""

from __future__ import annotations

from typing import Any

LayerForm = dict[str, Any]

_DEFAULT_FORM: LayerForm = {
    "graph": "float32",
    "operands": "constant",
    "spatial": 2,
    "kernel": 3,
    "stride": 1,
    "dilation": 1,
    "groups": "none",
    "channels": 32,
    "outputs": 64,
    "plane": "wide",
    "rows": 32,
    "batched": "none",
    "scales": "usual",
    "padded": 0,
    "counted": 0,
}
_DEFAULT_DECONVOLUTION: LayerForm = {"kernel": 2, "stride": 2}


def default_form(operator: str) -> LayerForm:
    """Return the values of the keys that a form of an operator leaves out."""
    form = dict(_DEFAULT_FORM)
    if operator == "ConvTranspose":
        form.update(_DEFAULT_DECONVOLUTION)
    return form
