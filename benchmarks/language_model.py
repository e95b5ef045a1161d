"""A small causal language model of bytes, trained on the docstrings of Python's standard library.

Run it with a Python that has torch; qdq needs none:

    python benchmarks/language_model.py --out FOLDER [--steps 700]

It writes `language_model.onnx` and `language_model.npz`. The arrays are windows of bytes as
`calibration` and `held_out`, of modules that the other one and the training do not have.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_OPSET = 17
_BYTES, _WINDOW = 256, 128
_WIDTH, _HEADS, _LAYERS = 256, 4, 3
_BATCH, _RATE = 16, 2e-3
#: Of ten modules, one is held out for scores, and one for calibration.
_MODULES, _HELD_OUT, _CALIBRATION = 10, 0, 5
_CALIBRATION_WINDOWS, _HELD_OUT_WINDOWS = 144, 400


class Block(nn.Module):
    """Masked attention and a feed-forward part, each after a LayerNorm and beside a residual."""

    def __init__(self) -> None:
        super().__init__()
        linears = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.query, self.key, self.value, self.out = linears
        self.wide, self.narrow = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)
        self.first_norm, self.second_norm = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.first_norm(x)
        query, key, value = (
            linear(normed).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (_WIDTH // _HEADS) ** 0.5 + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.narrow(nn.functional.gelu(self.wide(self.second_norm(x))))


class LanguageModel(nn.Module):
    """A decoder as in Radford et al. 2019 (GPT-2) over single bytes, 3 layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(_BYTES, _WIDTH), nn.Embedding(_WINDOW, _WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(_LAYERS)])
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _BYTES)
        mask = torch.full((_WINDOW, _WINDOW), -1e4).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.places.weight[None]
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export a small language model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--steps", type=int, default=700)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = read_parts()
    calibration = cut_windows(parts["calibration"], _CALIBRATION_WINDOWS)
    held_out = cut_windows(parts["held_out"], _HELD_OUT_WINDOWS)
    path = arguments.out / "language_model.npz"
    np.savez_compressed(path, calibration=calibration, held_out=held_out)
    model = train(parts["training"], arguments.steps)
    export(model, arguments.out / "language_model.onnx")


def read_parts() -> dict[str, npt.NDArray[np.uint8]]:
    """Return the bytes of the docstrings by their purpose."""
    texts: dict[str, list[str]] = {"training": [], "held_out": [], "calibration": []}
    names = {_HELD_OUT: "held_out", _CALIBRATION: "calibration"}
    for number, docstrings in enumerate(read_docstrings()):
        texts[names.get(number % _MODULES, "training")] += docstrings
    parts: dict[str, npt.NDArray[np.uint8]] = {}
    for name, part in texts.items():
        parts[name] = np.frombuffer("\n\n".join(part).encode(), np.uint8)
    return parts


def read_docstrings() -> Iterator[list[str]]:
    """Yield the docstrings of each module of the standard library that has some."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or "test" in name:
            continue
        docstrings = list_docstrings(path.read_bytes())
        if docstrings:
            yield docstrings


def list_docstrings(source: bytes) -> list[str]:
    """Return the docstrings of a module; none where it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    return [text for text in map(ast.get_docstring, nodes) if text]


def cut_windows(text: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    """Return windows at even distances, [count, bytes of a window]."""
    starts = np.linspace(0, len(text) - _WINDOW, count).astype(int)
    return np.stack([text[start : start + _WINDOW] for start in starts]).astype(np.int64)


def train(text: npt.NDArray[np.uint8], steps: int) -> LanguageModel:
    """Return the trained model."""
    torch.manual_seed(0)
    model = LanguageModel()
    tokens = torch.from_numpy(text.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps)
    begun = time.monotonic()
    for step in range(steps):
        starts = torch.randint(0, len(tokens) - _WINDOW - 1, (_BATCH,))
        windows = torch.stack([tokens[start : start + _WINDOW + 1] for start in starts])
        logits = model(windows[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            bits = loss.item() / np.log(2)
            print(f"{step + 1}: {bits:.3f} bits, {time.monotonic() - begun:.0f} s", flush=True)
    return model.eval()


def export(model: LanguageModel, path: Path) -> None:
    """Write the model for one window."""
    warnings.simplefilter("ignore")
    example = torch.zeros((1, _WINDOW), dtype=torch.int64)
    names = {"input_names": ["tokens"], "output_names": ["logits"]}
    torch.onnx.export(model, (example,), path, dynamo=False, opset_version=_OPSET, **names)
    print(path)


if __name__ == "__main__":
    main()
