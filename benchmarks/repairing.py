"""Models that other tools quantized: what check finds, what TensorRT-RTX makes of them, and what
repair makes of both.

    python benchmarks/repairing.py

Prints the table of docs/results.md. The models are those of tests/integration/test_peers.py: ONNX
Runtime's quantizer writes them here, others lie in fixtures/peers. The SNR is that of the output
against the float network's, over inputs that nothing was calibrated on.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402
from harness import markdown_head  # noqa: E402

import qdq  # noqa: E402
from qdq.engines.rtx_compiler import Compiler  # noqa: E402
from qdq.target import Target  # noqa: E402
from tests.support.peer_repairs import PEERS, compiled, repaired, snr, target_of  # noqa: E402
from tests.support.peers import peer  # noqa: E402


def int8(model: onnx.ModelProto, target: Target, compiler: Compiler) -> str:
    """Return how many of the weighted layers run in INT8 or FP8, or that the compiler refuses the
    model.
    """
    if compiler.build(model, target).failure:
        return "refused"
    layers = compiled(model, target, compiler).layers
    return f"{sum(v.int8 or v.fp8 for v in layers)} of {len(layers)}"


def row(name: str, compiler: Compiler) -> str:
    target = target_of(name)
    errors = Counter(
        f.code for f in qdq.check(peer(name), targets=[target]) if f.severity == "error"
    )
    codes = ", ".join(f"{code} ({n})" for code, n in sorted(errors.items())) or "-"
    layers = [int8(model, target, compiler) for model in (peer(name), repaired(name).model)]
    decibels = [f"{snr(name, model):.1f}" for model in (peer(name), repaired(name).model)]
    return f"| {name} | {codes} | {layers[0]} -> {layers[1]} | {decibels[0]} -> {decibels[1]} |"


def main() -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    print(
        markdown_head(
            (
                "model",
                "errors that check finds",
                "weighted layers in INT8 for rtx:sm86",
                "SNR in dB",
            )
        )
    )
    with Compiler() as compiler:
        for name in PEERS:
            print(row(name, compiler), flush=True)


if __name__ == "__main__":
    main()
