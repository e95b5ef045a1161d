"""One damaged file: what the library and a command do with it, and what must hold of that."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import resource
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz.byte_mutations import mutate_bytes
from fuzz.file_kinds import FILE, OUT, Command, FileKind, choose_kind
from fuzz.outcomes import FAILED, FINDINGS, REFUSED, WORKED, Outcome
from fuzz.seed_files import write_companions

#: Shares of the mutants that go through a command of milliseconds, and through any command.
_LIGHT_SHARE, _FULL_SHARE = 0.5, 0.12
#: Growth of this process's memory that a small file may not cause, in KiB.
_MOST_GROWTH = 1 << 20

_Snapshot = dict[str, tuple[int, int, int]]


class FileTrials:
    """A working folder of whole files, in which damaged ones are tried."""

    def __init__(self, kinds: Sequence[str] = ()) -> None:
        self.kinds = tuple(kinds)
        self.folder = Path(tempfile.mkdtemp(prefix="qdq-fuzzing-")).resolve()
        self.temporary = Path(tempfile.mkdtemp(prefix="qdq-fuzzing-")).resolve()
        write_companions(self.folder)
        self.examples: dict[str, list[bytes]] = {}
        self.before = _snapshot(self.folder)
        self.whole = {name: (self.folder / name).read_bytes() for name in self.before}
        cache_shipped_rules()
        self.native = os.open(self.temporary.parent / f"{self.temporary.name}.err",
                              os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)  # fmt: skip

    def close(self) -> None:
        os.close(self.native)
        for folder in (self.folder, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        Path(f"{self.temporary}.err").unlink(missing_ok=True)

    def damage(self, seed: int) -> tuple[FileKind, bytes, random.Random]:
        """Return what a seed stands for: a kind of file and a damaged one, and the generator."""
        rng = random.Random(seed)
        kind = choose_kind(rng, self.kinds)
        if kind.name not in self.examples:
            self.examples[kind.name] = kind.examples(self.folder)
        example, mutator = rng.choice(self.examples[kind.name]), rng.choice(kind.mutators)
        count = rng.choice((1, 1, 1, 2, 3))
        try:
            return kind, mutator(example, rng, count), rng
        except Exception:  # noqa: BLE001 what earlier changes left cannot be written or read again
            return kind, mutate_bytes(example, rng, count), rng

    def files(self, seed: int) -> dict[str, bytes]:
        """Return the damaged file of a seed by its name."""
        kind, content, _ = self.damage(seed)
        return {Path(kind.file).name: content}

    def run(self, seed: int) -> list[Outcome]:
        """Return what reader and commands did with the file that a seed stands for."""
        kind, content, rng = self.damage(seed)
        return self.try_content(seed, kind, content, choose_commands(kind, rng))

    def try_content(
        self, seed: int, kind: FileKind, content: bytes, commands: Sequence[Command]
    ) -> list[Outcome]:
        """Return what the reader and some commands did with the content of a file."""
        outcomes = []
        path = self.folder / kind.file
        with self._inside():
            for command in ((), *commands):
                path.write_bytes(content)
                outcomes.append(self._try(seed, kind, path, command))
        self._restore(path)
        return outcomes

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Work in the folder, with temporary files where they are seen."""
        current, temporary = Path.cwd(), tempfile.tempdir
        variable = os.environ.get("TMPDIR", "")
        os.chdir(self.folder)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.temporary)
        try:
            yield
        finally:
            os.chdir(current)
            tempfile.tempdir = temporary
            os.environ["TMPDIR"] = variable
            if not variable:
                del os.environ["TMPDIR"]

    def _restore(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        name = str(path.relative_to(self.folder))
        if name in self.whole:
            path.write_bytes(self.whole[name])
            self.before[name] = _stamp(path)

    def _try(self, seed: int, kind: FileKind, path: Path, command: Command) -> Outcome:
        before = {**self.before, kind.file: _stamp(path)}
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        name = " ".join(command[:2] if command[:1] == ("ranges",) else command[:1]) or "read"
        if "--fix" in command:
            name = "check --fix"
        if command:
            result, fault, details = self._call(kind, command)
        else:
            result, fault, details = _read(kind, path)
        if not fault:
            fault, details = self._find_trace(before, kind, command, result)
        if not fault and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > memory + _MOST_GROWTH:
            fault = "memory grew by more than 1 GiB"
        kind_of_end = FAILED if fault else result
        return Outcome(seed, kind.name, name, kind_of_end, fault, details)

    def _call(self, kind: FileKind, command: Command) -> tuple[str, str, str]:
        """Run a command; return how it ended, and the fault with its details if there is one."""
        names = {FILE: kind.file, OUT: "out.file", "OUT.yaml": "out.yaml"}
        argv = [names.get(word, word) for word in command]
        if kind.file not in ("qdq.yaml", "pyproject.toml"):
            argv.insert(0, "--no-project")
        os.ftruncate(self.native, 0)
        code, error, exception = _run_command(argv, self.native)
        shown = f"qdq {' '.join(argv)}"
        if exception:
            return FAILED, exception[0], f"{shown}\n{exception[1]}"
        native = os.pread(self.native, 2000, 0)
        if native:
            return FAILED, "a library wrote on standard error", f"{shown}\n{native!r}"
        fault = _find_wrong_end(code, error)
        if fault:
            return FAILED, fault, f"{shown}\n{error!r}"
        return {0: WORKED, 1: FINDINGS, 2: REFUSED}[code], "", ""

    def _find_trace(
        self, before: _Snapshot, kind: FileKind, command: Command, result: str
    ) -> tuple[str, str]:
        """Return what a command left behind that it may not, and remove it."""
        after = _snapshot(self.folder)
        outputs = {"out.file", "out.yaml", "resumed.json"} if result != REFUSED else set()
        may_change = {kind.file} if "--fix" in command and result != REFUSED else set()
        may_vanish = {kind.file} if "--resume" in command and result != REFUSED else set()
        leftover = set(after) - set(before) - outputs
        lost = set(before) - set(after) - may_vanish
        changed = {n for n in before if n in after and after[n] != before[n]} - may_change
        for name in set(after) - set(before):
            (self.folder / name).unlink()
        temporary = os.listdir(self.temporary)
        for name in temporary:
            remains = self.temporary / name
            shutil.rmtree(remains) if remains.is_dir() else remains.unlink()
        faults = {
            "files left behind": sorted(leftover),
            "files lost": sorted(lost),
            "files changed": sorted(changed),
            "temporary files left behind": temporary,
        }
        for fault, names in faults.items():
            if names:
                return f"{fault} ({result})", f"{command}: {names}"
        return "", ""


def choose_commands(kind: FileKind, rng: random.Random) -> list[Command]:
    """Return the commands that a mutant goes through, most of them cheap."""
    share = rng.random()
    if share < _FULL_SHARE and kind.commands:
        return [rng.choice(kind.commands)]
    if share < _FULL_SHARE + _LIGHT_SHARE and kind.light:
        return [rng.choice(kind.light)]
    return []


def _read(kind: FileKind, path: Path) -> tuple[str, str, str]:
    from qdq.errors import QdqError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)
            kind.read(path)
    except QdqError as error:
        if str(error).strip():
            return REFUSED, "", ""
        return FAILED, "an empty message", ""
    except Exception as error:  # noqa: BLE001 that none comes is what is tried
        return FAILED, describe_exception(error), shorten(traceback.format_exc())
    return WORKED, "", ""


def _find_wrong_end(code: int, error: str) -> str:
    """Return what is wrong with an exit code and its text on standard error, or ""."""
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code < 2:
        wrong = "Warning:" in error or "Traceback" in error
        return "a warning on standard error" if wrong else ""
    lines = [line for line in error.split("\n")[:-1] if not line.startswith("project file ")]
    if len(lines) != 1 or not lines[0].startswith("qdq: "):
        return "more than one line on standard error"
    return "" if lines[0].isprintable() else "control characters in the message"


def _run_command(argv: list[str], native: int) -> tuple[int, str, tuple[str, str] | None]:
    """Return exit code, standard error and an exception's sort and traceback."""
    from qdq.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        _native_errors_to(native),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(argv)
        except (Exception, SystemExit) as error:  # noqa: BLE001 that none comes is what is tried
            return -1, "", (describe_exception(error), shorten(traceback.format_exc()))
    return code, err.getvalue(), None


@contextlib.contextmanager
def _native_errors_to(native: int) -> Iterator[None]:
    standard_error = os.dup(2)
    os.dup2(native, 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def describe_exception(error: BaseException) -> str:
    """Return type and place of an exception: the same for all failures of one sort."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "/qdq/" in frame.filename] or list(frames)
    last = inside[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, {last.name}"


def shorten(text: str, most: int = 3000) -> str:
    return text if len(text) <= most else f"{text[: most // 3]}\n...\n{text[-2 * most // 3 :]}"


def _stamp(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _snapshot(folder: Path) -> _Snapshot:
    """Return size, time and inode of every file by relative path."""
    files: _Snapshot = {}
    for place, folders, names in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            files[os.path.relpath(path, folder)] = (
                status.st_size,
                status.st_mtime_ns,
                status.st_ino,
            )
    return files


def cache_shipped_rules() -> None:
    """Parse the shipped rule sets once: that is most of what a small model's check takes."""
    from qdq.rules import rule_files
    from qdq.rules.shipped import shipped_rules_folder

    read_folder = rule_files._read_folder
    if hasattr(read_folder, "of_shipped"):
        return
    of_shipped = functools.cache(read_folder)

    def read_folder_once(folder: Path) -> object:
        inside = Path(folder).is_relative_to(shipped_rules_folder())
        return of_shipped(folder) if inside else read_folder(folder)

    read_folder_once.of_shipped = True  # type: ignore[attr-defined]
    rule_files._read_folder = read_folder_once  # type: ignore[assignment]
