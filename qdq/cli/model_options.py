"""Options about the quantization that a model has, and about the form of its weights."""

from __future__ import annotations

import click

from qdq.pipeline.quantize_request import FLOAT_WEIGHTS, WEIGHT_FORMS
from qdq.pipeline.requantize import MODES, REPAIR

#: Adds ``--existing``.
existing_option = click.option(
    "--existing",
    type=click.Choice(MODES),
    default=REPAIR,
    show_default=True,
    help="Treatment of the Q/DQ that MODEL has: keep it all and add what is missing, "
    "repair it as the rules require, or replace it. All but replace keep its scales.",
)

#: Adds ``--store-weights``.
store_weights_option = click.option(
    "--store-weights",
    type=click.Choice(WEIGHT_FORMS),
    default=FLOAT_WEIGHTS,
    show_default=True,
    help="Form of the weights in the file: float with pairs, which strips byte for byte, or "
    "quantized (INT8, FP8, INT4) with a DequantizeLinear alone, a quarter of the size or less. "
    "gptq: quantized, rounded so that the layers' outputs change least on samples.",
)
