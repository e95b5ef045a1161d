"""Known architectures with random weights, exported by torch: what `placements.py` compares
placements on.

Run it with a Python that has torch, torchvision and onnxscript; qdq needs none of them:

    python benchmarks/architectures.py --out FOLDER [--only GLOB]

Weights and batch normalisation statistics are seeded. Files that are there already are left as
they are.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_OPSET = 17
_IMAGE, _INCEPTION_IMAGE, _CLIP, _UNET_IMAGE = (
    (1, 3, 224, 224),
    (1, 3, 299, 299),
    (1, 3, 8, 112, 112),
    (1, 3, 256, 256),
)
_TOKENS, _VOCABULARY = 128, 8192


class Architecture(NamedTuple):
    """How to make one network and what to trace it with."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = _IMAGE
    integers: bool = False
    #: "legacy" traces TorchScript; "dynamo" is torch's newer exporter; "unfolded" is legacy with
    #: batch normalisation left in the graph.
    exporter: str = "legacy"


def main() -> None:
    parser = argparse.ArgumentParser(description="Export known architectures with random weights.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .onnx files")
    parser.add_argument(
        "--only", default="*", help="glob of the architectures to export (default: all)"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter(
        "ignore"
    )  # of shapes that a trace makes constant, as they are meant to be
    for name, architecture in architectures().items():
        path = arguments.out / f"{name}.onnx"
        if fnmatchcase(name, arguments.only) and not path.exists():
            _export(architecture, path)
            print(path)


def architectures() -> dict[str, Architecture]:
    """Return what is exported, by file name."""
    models = _torchvision_models()
    images = {
        name: Architecture(_factory(models, name))
        for name in (
            "resnet18",
            "resnet50",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "efficientnet_b0",
            "densenet121",
            "squeezenet1_0",
            "shufflenet_v2_x1_0",
            "regnet_y_400mf",
            "convnext_tiny",
            "swin_t",
            "vit_b_16",
        )
    }
    more = {
        "googlenet": Architecture(
            lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False)
        ),
        "inception_v3": Architecture(
            lambda: models.inception_v3(weights=None, aux_logits=False, init_weights=False),
            _INCEPTION_IMAGE,
        ),
        "unet": Architecture(UNet, _UNET_IMAGE),
        "r3d_18": Architecture(lambda: models.video.r3d_18(weights=None), _CLIP),
        "lstm": Architecture(Tagger, (1, _TOKENS, 64)),
        "bert": Architecture(Bert, (1, _TOKENS), integers=True),
    }
    return {**images, **more, **_other_exporters({**images, **more})}


def _other_exporters(known: dict[str, Architecture]) -> dict[str, Architecture]:
    newer = ("resnet18", "mobilenet_v3_large", "convnext_tiny", "vit_b_16", "bert")
    dynamo = {f"{name}_dynamo": known[name]._replace(exporter="dynamo") for name in newer}
    return {**dynamo, "resnet18_unfolded": known["resnet18"]._replace(exporter="unfolded")}


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv:1505.04597) with padding and batch normalisation, a quarter
    as wide.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [
                _double(arguments, wide)
                for arguments, wide in zip((3, *widths), widths, strict=False)
            ]
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairs]
        )
        self.join = nn.ModuleList([_double(wide, narrow) for wide, narrow in pairs])
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Tagger(nn.Module):
    """A two-layer LSTM in both directions and a linear layer on each step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Bert(nn.Module):
    """A post-normalised encoder as in Devlin et al. 2018 (arXiv:1810.04805): 4 layers of 256, an
    additive mask, and a pooler.
    """

    def __init__(self, layers: int = 4, width: int = 256) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(_VOCABULARY, width), nn.Embedding(_TOKENS, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([BertLayer(width) for _ in range(layers)])
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids == 0).to(torch.float32)[:, None, None, :] * -10000.0
        x = self.norm(self.words(ids) + self.places.weight[None])
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class BertLayer(nn.Module):
    """Attention and feed-forward, each with its residual Add and LayerNorm behind."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            self._split(linear(x)) for linear in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (query.shape[-1] ** 0.5) + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(mixed))
        return self.norms[1](x + self.narrow(nn.functional.gelu(self.wide(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _double(arguments: int, wide: int) -> nn.Sequential:
    layers = [
        [nn.Conv2d(a, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        for a in (arguments, wide)
    ]
    return nn.Sequential(*layers[0], *layers[1])


def _export(architecture: Architecture, path: Path) -> None:
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    model = architecture.make().eval()
    _shake_statistics(model)
    shape = architecture.shape
    example = torch.randint(1, _VOCABULARY, shape) if architecture.integers else torch.randn(shape)
    names = {"input_names": ["input"], "output_names": ["output"]}
    temporary = path.with_suffix(".part")
    if architecture.exporter == "dynamo":
        torch.onnx.export(
            model, (example,), temporary, dynamo=True, external_data=False, verbose=False, **names
        )
    else:
        mode = (
            torch.onnx.TrainingMode.PRESERVE
            if architecture.exporter == "unfolded"
            else torch.onnx.TrainingMode.EVAL
        )
        torch.onnx.export(
            model, (example,), temporary, dynamo=False, opset_version=_OPSET, training=mode, **names
        )
    temporary.rename(path)


def _shake_statistics(model: nn.Module) -> None:
    """Give every batch normalisation statistics as if trained: else it is next to the identity."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor, low, high in (
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.running_mean, -0.2, 0.2),
                (module.bias, -0.2, 0.2),
            ):
                nn.init.uniform_(tensor, low, high)


def _factory(models: object, name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(models, name)(weights=None)


def _torchvision_models() -> object:
    """Return torchvision.models; torchvision built for a GPU asks for operators that a CPU-only
    torch does not have.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    return models


if __name__ == "__main__":
    main()
