"""What `calibration.py` compares with, where it is installed: ModelOpt's post-training
quantization of one ONNX model, on the CPU.

Run it with `python benchmarks/modelopt_ptq.py MODEL OUT FOLDER [--method max|entropy]`; FOLDER
holds one .npz a sample. Needs nvidia-modelopt[onnx], which brings its own onnxruntime; what is not
quantized stays float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize
from static import Samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Quantize a model with modelopt.onnx.quantization."
    )
    for name in ("model", "out", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--method", choices=("max", "entropy"), default="max")
    arguments = parser.parse_args()
    samples = list(iter(Samples(arguments.folder).get_next, None))
    quantize(
        str(arguments.model),
        quantize_mode="int8",
        calibration_data={
            name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]
        },
        calibration_method=arguments.method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(arguments.out),
        log_level="ERROR",
    )


if __name__ == "__main__":
    main()
