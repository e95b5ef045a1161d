"""The compiled part on 64-bit Arm, which qemu emulates: the bytes of this processor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qdq.compiled.compilation import FLAGS, find_compiler
from qdq.compiled.library import SOURCE

PROGRAM = Path(__file__).with_name("print_results.c")
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
LIBRARY_FLAGS = ("-shared", "-fPIC", "-fvisibility=hidden")

needs_arm = pytest.mark.skipif(
    not (shutil.which(ARM_COMPILER) and shutil.which(EMULATOR) and find_compiler()),
    reason=f"needs {ARM_COMPILER} and {EMULATOR} "
    "(Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)",
)


def run_program(folder: Path, compiler: list[str], *emulator: str) -> str:
    """Return what the program prints, compiled with the flags of the library."""
    program = folder / "program"
    flags = [flag for flag in FLAGS if flag not in LIBRARY_FLAGS]
    command = [*compiler, *flags, "-static", str(PROGRAM), str(SOURCE), "-lm", "-o", str(program)]
    subprocess.run(command, check=True)
    return subprocess.run([*emulator, program], check=True, capture_output=True, text=True).stdout


@needs_arm
def test_arm_gives_the_bytes_of_this_processor(tmp_path: Path) -> None:
    compiler = find_compiler()
    assert compiler is not None

    here = run_program(tmp_path, compiler)
    arm = run_program(tmp_path, [ARM_COMPILER], EMULATOR)

    assert here.splitlines() == arm.splitlines()
    assert len(set(here.splitlines())) == 130
