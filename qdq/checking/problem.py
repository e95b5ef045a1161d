"""One kind of finding: its code, severity, cost, fix and evidence."""

from __future__ import annotations

import msgspec

from qdq.documentation import locate_page

ERROR = "error"
WARNING = "warning"
NOTE = "note"
SEVERITIES = (ERROR, WARNING, NOTE)

#: The documentation page that is generated from the catalogue.
_PAGE = "findings"

#: The pages that entries of the catalogue cite.
PRECISION_PAGE = locate_page("precision")

#: Sources that several entries of the catalogue cite.
RTX = "built with TensorRT-RTX 1.7.1 for rtx:sm86"
PARSER = "onnx-tensorrt, onnxOpImporters.cpp, QuantDequantLinearHelper"
EXPLICIT = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
    "quantized-types-explicit-quantization.html"
)
ENGINES = (
    "engines of ResNet-18 on A100 published with trt-engine-explorer (NVIDIA/TensorRT, release/8.4)"
)
SPECIFICATION = "the ONNX operator specification"
BUILT_ENGINE = "the engine that --engine built"

#: The fix that several entries of the catalogue name.
REPAIR_FIX = "repair it with qdq quantize"


class Problem(msgspec.Struct, frozen=True):
    """One kind of finding."""

    #: Stable name, in kebab-case.
    code: str
    #: ``error``: TensorRT refuses or misreads the model. ``warning``: the model runs, but slower or
    #: not in INT8. ``note``: the model is suspicious.
    severity: str
    #: A noun phrase without a full stop.
    title: str
    #: The consequence, in whole sentences.
    cost: str
    #: The remedy, as an imperative without a capital and a full stop.
    fix: str
    #: What was built or read to confirm it, and with which version.
    evidence: str
    #: Where it is documented, "" where it is not.
    see: str = ""

    @property
    def page(self) -> str:
        """The address of its section in the documentation; `qdq docs CODE` prints it."""
        return locate_page(_PAGE, self.code)
