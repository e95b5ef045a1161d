"""The target of a plan: a backend and a compute capability."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from qdq.arguments import list_items, require_type
from qdq.errors import UsageError

#: Compute capabilities that TensorRT-RTX 1.7 compiles for without a GPU.
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)

#: The compute capability of TensorRT-RTX that builds no Gemm in FP32.
_FP16_ONLY_CAPABILITY = 75

_FORM = re.compile(r"(?P<backend>rtx|trt)(:sm_?(?P<sm>\d{2,3}))?")


class Target(msgspec.Struct, frozen=True, order=True):
    """A compiler and the GPU generation it compiles for, written ``rtx:sm86``."""

    #: ``rtx`` for TensorRT-RTX, ``trt`` for TensorRT.
    backend: str
    #: Compute capability times ten: 86 is 8.6. 0 is the GPU that is present.
    sm: int

    def __str__(self) -> str:
        return f"{self.backend}:sm{self.sm}" if self.sm else self.backend


#: The forms in which the library's functions take targets.
TargetsLike = Target | str | Iterable[Target | str]

_ADVICE = "texts such as 'rtx:sm86', or qdq.Target"

#: The target of a plan where the user passes none: TensorRT on SM 8.0 and up.
DEFAULT_TARGET = Target("trt", 80)


def parse_target(text: str) -> Target:
    """Return the target of a text such as ``rtx:sm86``, ``trt:sm80`` or ``trt``.

    Raises UsageError for a text of another form, and for a compute capability that TensorRT-RTX
    cannot compile for.
    """
    require_type(text, str, "target", _ADVICE)
    match = _FORM.fullmatch(text.strip().lower())
    if not match:
        raise UsageError(
            f"unknown target {text!r}: write a backend and a compute capability,"
            " such as rtx:sm86 or trt:sm80."
        )
    target = Target(match["backend"], int(match["sm"] or 0))
    if target.backend == "rtx" and target.sm not in RTX_CAPABILITIES:
        known = ", ".join(f"rtx:sm{sm}" for sm in RTX_CAPABILITIES)
        raise UsageError(f"unknown target {text!r}: TensorRT-RTX compiles for {known}.")
    return target


def to_targets(targets: TargetsLike) -> tuple[Target, ...]:
    """Return targets; texts are parsed. Raises UsageError for anything else."""
    items = list_items(targets, (Target, str), "targets", _ADVICE)
    return tuple(item if isinstance(item, Target) else parse_target(item) for item in items)


def needs_fp16(target: Target) -> bool:
    """Whether a target builds no Gemm in FP32 (rules/kernels/rtx-sm75.yaml)."""
    return target.backend == "rtx" and target.sm == _FP16_ONLY_CAPABILITY
