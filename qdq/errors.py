"""The exceptions of qdq, in one tree.

* QdqError                 exit code 2: the run could not be completed
  + UsageError             the request itself cannot be met (an option, a target, an output path)
    - MissingPackageError  the request needs an optional package that is not installed
  + ModelError             the model file is not one that can be read or quantized
  + RuleError              a rule file is wrong, or two rules disagree
  + DataError              calibration data is missing or does not fit the model
  + MetricError            a metric's function fails, or a metric does not fit the model's outputs
  + PlanError              a plan or scales file is stale or does not fit the model
  + CompilerError          the TensorRT compiler is missing or could not be driven
    - LayerFileError       a file of engine layers cannot be read

Each message is one line: the file, node or input, then the fact, then the fix. The command line
prints it and ends with the class's exit code. Any other exception is a defect of qdq: the command
line ends with exit code 3.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: The error code that begins a message of ONNX Runtime.
_RUNTIME_CODE = r"^\[ONNXRuntimeError\] : \d+ : \w+ : "

#: The file, line and function of ONNX Runtime's source in a message.
_RUNTIME_LOCATION = r"/onnxruntime_src/\S+:\d+ .*?\)(?: \[with [^\]]*\])? "


class QdqError(Exception):
    """The run could not be completed; the message is one line for the user."""

    exit_code = 2


class UsageError(QdqError):
    """The request cannot be met: a bad option value, an output that may not be written."""


class MissingPackageError(UsageError):
    """The request needs an optional package; the message has the line that installs it."""


class ModelError(QdqError):
    """The model cannot be read, or is not one that can be quantized."""


class RuleError(QdqError):
    """A rule file is wrong, or two rules disagree about an edge."""


class DataError(QdqError):
    """Calibration data is missing or does not fit the model's inputs."""


class MetricError(QdqError):
    """The function of a metric fails, or a metric does not fit the model's outputs or labels."""


class PlanError(QdqError):
    """A plan or scales file belongs to another model, or cannot be carried out."""


class CompilerError(QdqError):
    """The TensorRT compiler is not installed, or its output could not be read."""


class LayerFileError(CompilerError):
    """A file of engine layers cannot be read, or belongs to another model."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word, with the known words nearest to it.

    It is ``". Did you mean 'a' or 'b'?"``, or ``"."`` where none is near.
    """
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.55)
    if not near:
        return "."
    return f". Did you mean {' or '.join(map(repr, near))}?"


def first_line(error: BaseException | str) -> str:
    """Return the first non-empty line of an error's text, for use inside a one-line message."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__


def runtime_line(error: BaseException) -> str:
    """Return the message of ONNX Runtime in one line.

    Its error code, and the file, line and function of its source are removed.
    """
    message = re.sub(_RUNTIME_CODE, "", first_line(error))
    return re.sub(_RUNTIME_LOCATION, "", message)
