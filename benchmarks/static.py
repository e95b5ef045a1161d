"""What `quantize.py` and `calibration.py` compare with: ONNX Runtime's own static quantization of
one model.

Run it with `python benchmarks/static.py MODEL OUT FOLDER`; FOLDER holds one .npz a sample. Needs
nothing besides onnxruntime, onnx and numpy: onnxruntime.quantization asks for sympy only in its
separate pre-processing step, which is not run here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)


class Samples(CalibrationDataReader):  # type: ignore[misc] # onnxruntime carries no types
    """The .npz files of a folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._samples = self._read(folder)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)

    @staticmethod
    def _read(folder: Path) -> Iterator[dict[str, Any]]:
        for file in sorted(folder.glob("*.npz")):
            with np.load(file) as sample:
                yield dict(sample)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Quantize a model with onnxruntime.quantization.quantize_static."
    )
    for name in ("model", "out", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--method", choices=("MinMax", "Entropy"), default="MinMax")
    arguments = parser.parse_args()
    quantize_static(
        arguments.model,
        arguments.out,
        Samples(arguments.folder),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[arguments.method],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


if __name__ == "__main__":
    main()
