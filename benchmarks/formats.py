"""Measure INT4 weights and FP8 on a network of Gemms, a sentence encoder and a language model.

    pip install tokenizers                                  # what the task needs
    python benchmarks/formats.py --shared ../shared --language FOLDER

`--shared` names a folder with `models/minilm_l6_legacy.onnx` and `tasks/`, `--language` that of
`language_model.py`. Engines are compiled without a GPU. The output is Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from harness import markdown_head, markdown_row
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.runtime.session import exact_options

SAMPLES = 144
#: Texts that measure the signal-to-noise ratio, after those of calibration.
HELD_OUT = 48
ENCODER = "minilm_l6_legacy"
LANGUAGE = "language_model"

#: The network of Gemms and its training.
GEMMS = "digits_gemms"
DIGITS = Path(__file__).parents[1] / "fixtures" / "networks" / "digits-evaluation.npz"
TRAINED = 300
PIXELS, HIDDEN, CLASSES = 64, 512, 10
STEPS, BATCH, RATE = 1000, 50, 0.02

HEADERS = (
    "model",
    "format",
    "target",
    "weighted layers in the format",
    "kernels, float -> format",
    "MB moved",
    "MB in the file",
    "SNR in dB",
    "score, float -> format",
)

Feed = dict[str, Any]


class Format(msgspec.Struct, frozen=True):
    """A way to quantize, and the target whose engine is read."""

    label: str
    rules: str
    target: str
    store: str = "float"
    float_type: str = "fp32"

    @property
    def needs_data(self) -> bool:
        """Whether activations are quantized, or weights rounded by their effect."""
        return self.store == "gptq" or "int4" not in self.rules


FORMATS = (
    Format("FP8", "tensorrt-fp8", "rtx:sm89", "quantized"),
    Format("INT4, blocks of 128", "tensorrt-int4", "rtx:sm86", "quantized"),
    Format("INT4, blocks of 64", "tensorrt-int4-block-64", "rtx:sm86", "quantized"),
    Format("INT4, blocks of 128, GPTQ", "tensorrt-int4", "rtx:sm86", "gptq"),
    Format("INT4, blocks of 64, GPTQ", "tensorrt-int4-block-64", "rtx:sm86", "gptq"),
    Format("INT4, blocks of 128, FP16 around", "tensorrt-int4", "rtx:sm86", "quantized", "fp16"),
    Format("INT4, blocks of 128, GPTQ, FP16 around", "tensorrt-int4", "rtx:sm86", "gptq", "fp16"),
    Format("FP8, FP16 around", "tensorrt-fp8", "rtx:sm89", "quantized", "fp16"),
    Format("INT8", "tensorrt", "rtx:sm86", "quantized"),
    Format("INT8, FP16 around", "tensorrt", "rtx:sm86", "quantized", "fp16"),
)


class Subject(msgspec.Struct, frozen=True):
    """A float model with its samples.

    `measure` returns the share of texts found, of images labelled correctly, or the bits of a byte.
    """

    name: str
    path: Path
    calibration: list[Feed]
    held_out: list[Feed]
    measure: Callable[[ort.InferenceSession], float]


def open_model(path: Path) -> ort.InferenceSession:
    """Return a session that computes every Q and DQ as it is written."""
    return ort.InferenceSession(str(path), exact_options(), providers=["CPUExecutionProvider"])


def make_encoder(shared: Path) -> Subject:
    """Return MiniLM with texts of the standard library."""
    sys.path.insert(0, str(shared / "tasks"))
    task = importlib.import_module("minilm_retrieval")
    path = shared / "models" / f"{ENCODER}.onnx"
    feeds = task.feeds(None, SAMPLES + HELD_OUT)

    def find_texts(session: ort.InferenceSession) -> float:
        return float(task.evaluate(session, str(path))["recall@1"])

    return Subject(ENCODER, path, feeds[:SAMPLES], feeds[SAMPLES:], find_texts)


def make_language_model(folder: Path) -> Subject:
    """Return the model of `language_model.py` with its windows of text."""
    path = folder / f"{LANGUAGE}.onnx"
    with np.load(folder / f"{LANGUAGE}.npz") as data:
        calibration, held_out = data["calibration"], data["held_out"]
    feeds: list[Feed] = [{"tokens": window[None]} for window in held_out]

    def measure_bits(session: ort.InferenceSession) -> float:
        losses = []
        for window, feed in zip(held_out, feeds, strict=True):
            logits = np.asarray(session.run(None, feed)[0][0], np.float64)
            shifted = logits - logits.max(axis=1, keepdims=True)
            logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            losses.append(-logs[np.arange(len(window) - 1), window[1:]].mean())
        return float(np.mean(losses) / np.log(2))

    windows: list[Feed] = [{"tokens": window[None]} for window in calibration[:SAMPLES]]
    return Subject(LANGUAGE, path, windows, feeds[:HELD_OUT], measure_bits)


def make_gemm_network(folder: Path) -> Subject:
    """Return three Gemms of 512 hidden values, trained on 300 digits and scored on 200 others."""
    with np.load(DIGITS) as data:
        images, labels = data["image"].reshape(-1, PIXELS), data["label"]
    weights = train(images[:TRAINED], labels[:TRAINED])
    path = folder / f"{GEMMS}.onnx"
    onnx.save(make_gemms(weights), path)
    others, other_labels = images[TRAINED:], labels[TRAINED:]

    def label_images(session: ort.InferenceSession) -> float:
        (logits,) = session.run(None, {"image": others})
        return float(np.mean(np.asarray(logits).argmax(axis=1) == other_labels))

    calibration: list[Feed] = [{"image": image[None]} for image in images[:SAMPLES]]
    return Subject(GEMMS, path, calibration, [{"image": others}], label_images)


def train(images: Any, labels: Any) -> list[tuple[Any, Any]]:
    """Return the weights and biases of the Gemms, by gradient descent with momentum."""
    random = np.random.default_rng(0)
    sizes = (PIXELS, HIDDEN, HIDDEN, CLASSES)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        weight = random.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))
        layers.append([weight.astype(np.float32), np.zeros(outputs, np.float32)])
    steps = [[np.zeros_like(array) for array in layer] for layer in layers]
    for _ in range(STEPS):
        chosen = random.integers(0, len(images), BATCH)
        noise = random.normal(0, 0.1, (BATCH, PIXELS))
        noisy = images[chosen] + noise.astype(np.float32)
        for layer, step, gradient in zip(
            layers, steps, find_gradients(layers, noisy, labels[chosen]), strict=True
        ):
            for array, change, slope in zip(layer, step, gradient, strict=True):
                change[...] = 0.9 * change - RATE * slope
                array[...] += change
    return [(weight, bias) for weight, bias in layers]


def find_gradients(layers: Any, images: Any, labels: Any) -> list[tuple[Any, Any]]:
    """Return the gradients of the cross entropy by each layer's weight and bias."""
    inputs = [images]
    for weight, bias in layers[:-1]:
        inputs.append(np.maximum(inputs[-1] @ weight + bias, 0))
    weight, bias = layers[-1]
    logits = inputs[-1] @ weight + bias
    errors = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(labels)), labels] -= 1
    errors /= len(labels)
    gradients = []
    for (weight, _), values in zip(reversed(layers), reversed(inputs), strict=True):
        gradients.append((values.T @ errors, errors.sum(axis=0)))
        errors = (errors @ weight.T) * (values > 0)
    return gradients[::-1]


def make_gemms(weights: Sequence[tuple[Any, Any]]) -> onnx.ModelProto:
    """Return the trained network with a Relu between the Gemms."""
    graph = onnx.GraphProto(name=GEMMS)
    tensor = "image"
    for position, (weight, bias) in enumerate(weights):
        name = f"gemm{position}"
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}_w"))
        graph.initializer.append(numpy_helper.from_array(bias, f"{name}_b"))
        inputs = [tensor, f"{name}_w", f"{name}_b"]
        graph.node.append(helper.make_node("Gemm", inputs, [name], name=name))
        tensor = name
        if position < len(weights) - 1:
            tensor = f"relu{position}"
            graph.node.append(helper.make_node("Relu", [name], [tensor], name=tensor))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", PIXELS])
    logits = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", CLASSES])
    graph.input.append(image)
    graph.output.append(logits)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def measure_format(
    subject: Subject, chosen: Format, float_score: float, folder: Path
) -> tuple[str, ...]:
    """Return the row of a model in a format."""
    target = qdq.parse_target(chosen.target)
    result = qdq.quantize(
        subject.path,
        subject.calibration if chosen.needs_data else None,
        rules=chosen.rules,
        targets=[target],
        store_weights=chosen.store,
        recovery=qdq.Recovery(guard=False),
        float_type=chosen.float_type,
    )
    path = folder / f"{subject.name}.quantized.onnx"
    qdq.save(result.model, result.source, path, force=True)
    (engine,) = qdq.validate(
        subject.path, path, data=subject.calibration[:1], targets=[target]
    ).engines
    promised = [layer for layer in engine.layers if layer.promised]
    broken = {promise.node for promise in engine.broken_promises}
    kept = sum(layer.node not in broken for layer in promised)
    return (
        subject.name,
        chosen.label,
        chosen.target,
        engine.failure or f"{kept} of {len(promised)}, {len(engine.layers)} in all",
        f"{engine.float_kernels} -> {engine.kernels}",
        f"{engine.float_bytes / 1e6:.2f} -> {engine.bytes / 1e6:.2f}",
        f"{subject.path.stat().st_size / 1e6:.2f} -> {path.stat().st_size / 1e6:.2f}",
        f"{measure_noise(subject, path):.1f}",
        f"{float_score:.3f} -> {subject.measure(open_model(path)):.3f}",
    )


def measure_noise(subject: Subject, path: Path) -> float:
    """Return the signal-to-noise ratio of the outputs over the held-out samples, in dB."""
    expected, actual = open_model(subject.path), open_model(path)
    signal = noise = 0.0
    for feed in subject.held_out:
        values = np.asarray(expected.run(None, feed)[0], np.float64)
        error = np.asarray(actual.run(None, feed)[0], np.float64) - values
        signal += float(np.square(values).sum())
        noise += float(np.square(error).sum())
    return 10 * float(np.log10(signal / noise))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--formats", default="*", help="a glob of labels, such as 'INT4*'")
    arguments = parser.parse_args()
    print(markdown_head(HEADERS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        makers = {
            GEMMS: lambda: make_gemm_network(folder),
            ENCODER: lambda: make_encoder(arguments.shared),
            LANGUAGE: lambda: make_language_model(arguments.language),
        }
        for name, make_subject in makers.items():
            if arguments.only and name not in arguments.only:
                continue
            subject = make_subject()
            float_score = subject.measure(open_model(subject.path))
            for chosen in FORMATS:
                if not fnmatchcase(chosen.label, arguments.formats):
                    continue
                row = measure_format(subject, chosen, float_score, folder)
                print(markdown_row(row), flush=True)


if __name__ == "__main__":
    main()
