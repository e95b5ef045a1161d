"""Compiling the library; `hatch_build.py` runs this file alone, without qdq's dependencies."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

#: Results do not depend on the processor: no operation is fused or reordered.
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")

#: The environment variable that leaves the library out where it is 0.
SWITCH = "QDQ_COMPILE"

_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 300


def compile_library(source: Path, library: Path, options: Sequence[str] = ()) -> str:
    """Write the library; return an empty text, or the reason why there is none, nor an older one.

    `options` are further ones of the compiler.
    """
    library.unlink(missing_ok=True)
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0."
    compiler = find_compiler()
    if compiler is None:
        return "there is no C compiler (cc, gcc or clang)."
    unfinished = library.with_suffix(f".{os.getpid()}")
    macro = f'-DSOURCE_DIGEST="{digest_source(source)}"'
    files = [str(source), "-o", str(unfinished), "-lm"]
    command = [*compiler, *FLAGS, *options, macro, *files]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        unfinished.replace(library)
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(compiler)} failed: {error.stderr.decode(errors='replace').strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{shlex.join(compiler)} failed: {error}"
    finally:
        unfinished.unlink(missing_ok=True)
    return ""


def find_compiler() -> list[str] | None:
    """Return the command of a C compiler with GCC's options, or None: CC or the first on PATH."""
    if os.name == "nt":
        return None
    command = shlex.split(os.environ.get("CC", ""))
    if command:
        return command if shutil.which(command[0]) else None
    for name in _COMPILERS:
        path = shutil.which(name)
        if path:
            return [path]
    return None


def digest_source(source: Path) -> str:
    """Return the digest of a source, which its library states."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]
