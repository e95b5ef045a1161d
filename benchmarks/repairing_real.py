"""Real models that ONNX Runtime's quantizer quantized, and what qdq mends of them without data and
repairs with data.

    python benchmarks/repairing_real.py --shared ../shared

Prints the table of docs/results.md. `default` is `quantize_static` with no options, `channels` has
UINT8 activations and channel scales, `for TensorRT` what Model Optimizer tells it. All are
calibrated on the same samples as qdq, and scored as benchmarks/results.py scores.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from onnxruntime.quantization import QuantType, quantize_static  # noqa: E402
from results import Subject, row, spelled  # noqa: E402

import qdq  # noqa: E402
from qdq.pipeline.fixer import fix  # noqa: E402
from tests.support.peers import FOR_TENSORRT, Reader  # noqa: E402

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "channels": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
    "for TensorRT": FOR_TENSORRT,
}
MODELS = (
    "efficientnet_lite0",
    "minilm_l6_legacy",
    "ppocrv2_cls",
    "ppocrv4_rec",
    "silero_vad_16k_sequence",
    "squeezenet10_fp32",
)


def score(subject: Subject, model: Path) -> str:
    """Return a model's score, or that ONNX Runtime refuses it."""
    try:
        return spelled([subject.score(model)])
    except Exception as error:  # noqa: BLE001 ONNX Runtime's errors have no common class
        return f"refused by ONNX Runtime ({type(error).__name__})"


def cells(subject: Subject, form: str, folder: Path) -> tuple[str, ...]:
    """Return the score as given, mended by what the model says itself, repaired with data, and
    quantized anew from the float model.
    """
    quantized, result_path, samples = (
        folder / "given.onnx",
        folder / "repaired.onnx",
        subject.calibration(),
    )
    try:
        quantize_static(str(subject.path), str(quantized), Reader(samples), **FORMS[form])
    except Exception as error:  # noqa: BLE001
        return (form, f"cannot be made ({type(error).__name__})", "-", "-")
    scores = [score(subject, quantized)]
    for result in (fix(quantized), qdq.quantize(quantized, samples)):
        if result is not None:
            qdq.save(result.model, result.source, result_path, force=True)
            scores.append(score(subject, result_path))
    return (form, *scores)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, required=True, help="the folder that holds models and tasks"
    )
    shared = parser.parse_args().shared
    sys.path.insert(0, str(shared / "tasks"))
    logging.disable()
    warnings.simplefilter("ignore")
    headers = (
        "model",
        "float",
        "ONNX Runtime",
        "as given",
        "`check --fix`",
        "`quantize`, with data",
    )
    print(row(headers) + "\n" + row(("---",) * len(headers)))
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            subject = Subject(shared / "models" / f"{name}.onnx", importlib.import_module)
            exact = spelled([subject.score(subject.path)])
            for form in FORMS:
                print(row((name, exact, *cells(subject, form, Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
