"""Build the distributions twice, in two folders, and compare their bytes.

    python release/compare_builds.py [-o FOLDER]

The wheel with the compiled part, the wheel without it and the sdist are built from two copies of
the files that git knows, and the wheel also from the sdist. The times in them are those of
SOURCE_DATE_EPOCH, by default hatchling's. `-o` keeps the distributions of the first copy.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: The environment of each kind of distribution, and the options of `python -m build`.
KINDS = {
    "wheel": ({}, ["--wheel"]),
    "wheel without the compiled part": ({"QDQ_COMPILE": "0"}, ["--wheel"]),
    "sdist": ({}, ["--sdist"]),
}


def copy_checkout(target: Path) -> None:
    """Copy the files that git knows or does not ignore."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(source: Path, output: Path) -> dict[str, Path]:
    """Build every kind from a folder and return the file of each."""
    files = {}
    for kind, (environment, options) in KINDS.items():
        folder = output / kind.replace(" ", "-")
        command = [sys.executable, "-m", "build", "--no-isolation", *options, "-o", str(folder)]
        process = subprocess.run(
            [*command, str(source)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            sys.exit(f"{kind} of {source}:\n{process.stdout}{process.stderr}")
        (files[kind],) = folder.iterdir()
    return files


def unpack(sdist: Path, target: Path) -> Path:
    """Unpack an sdist and return its folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Build in three folders; return the first distributions and a line for each difference."""
    for name in ("first", "second/deeper"):
        copy_checkout(folder / name)
    first = build(folder / "first", folder / "built" / "first")
    second = build(folder / "second/deeper", folder / "built" / "second")
    unpacked = unpack(first["sdist"], folder / "unpacked")
    third = build(unpacked, folder / "built" / "from-sdist")
    differences = []
    for place, files in (("another folder", second), ("the sdist", third)):
        for kind, path in files.items():
            if (path.name, digest(path)) != (first[kind].name, digest(first[kind])):
                differences.append(f"{kind}: built from {place} it has other bytes")
    return first, differences


def main() -> int:
    """Print the digests, and the differences; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="folder for the distributions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files, differences = compare(Path(folder))
        for kind, path in files.items():
            print(f"{digest(path)}  {path.name}  ({kind})")
            if arguments.output:
                arguments.output.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, arguments.output)
    for line in differences:
        print(line)
    print("the same bytes" if not differences else f"{len(differences)} differ")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
