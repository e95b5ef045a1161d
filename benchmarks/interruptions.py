"""What a command that fails or is interrupted leaves on disk.

    python benchmarks/interruptions.py                 # the table of docs/reliability.md
    python benchmarks/interruptions.py plan apply      # some commands
    python benchmarks/interruptions.py --moments 30    # signals at more moments

Every command that writes files is really run: on a full disk (a small tmpfs, or a limit on the
size of files where this user may not mount one), into a folder that is read-only, ended by signals
at many moments, over an output that is a link, and over an output that is an input. Then the
folder is compared with what it held before, and with what a whole run writes, byte for byte.

Signals are sent after delays that are spread over the run, and when the first temporary file
appears. After a run that left temporary files, the same command is run again, which must remove
them. The program ends with 1 where a file is neither as before nor complete, where an input
changed, and where a temporary file stays.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness import CHECKOUT, checkout_environment, markdown_head, markdown_row

sys.path.insert(0, str(CHECKOUT))

import numpy as np
import onnx
from onnx import numpy_helper, parser

QDQ = (sys.executable, "-m", "qdq", "--no-project")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
OLD = b"old content\n"
PAGE = 4096
TEMPORARY = ".qdq-"
_POLL_SECONDS = 0.0002
_WEIGHT_SIZE = 512

#: What the table says of an outcome.
BEFORE, COMPLETE = "as before", "complete"


@dataclass(frozen=True)
class Command:
    """A command that writes files: `IN/` and `OUT/` in its arguments stand for the folders."""

    name: str
    arguments: str
    #: The names of the files that it writes.
    outputs: tuple[str, ...]
    #: An input that an output may be linked to, "" where the command reads no file.
    source: str = "m.onnx"
    force: bool = True
    #: The output that is changed in place, with the input that it is a copy of.
    in_place: str = ""
    #: Whether it writes where a file exists only if that is one of its own.
    keeps_others: bool = False

    def argv(self, inputs: Path, out: Path, force: bool) -> list[str]:
        """Return the arguments of the process."""
        words = self.arguments.replace("IN/", f"{inputs}/").replace("OUT/", f"{out}/").split()
        return [*QDQ, *words, *(["--force"] if force and self.force else [])]


COMMANDS = (
    Command(
        "quantize",
        "quantize IN/m.onnx --data IN/d.npz -o OUT/q.onnx --report OUT/q.json"
        " --report OUT/q.html --save-ranges OUT/q.ranges --checkpoint-every 0",
        ("q.onnx", "w.bin", "q.json", "q.html", "q.ranges"),
    ),
    Command(
        "quantize --out-dir",
        "quantize IN/m.onnx --out-dir OUT/. --jobs 2 --data IN/d.npz",
        ("m.onnx", "w.bin"),
    ),
    Command("plan", "plan IN/m.onnx -o OUT/p.yaml", ("p.yaml",)),
    Command(
        "calibrate",
        "calibrate IN/m.onnx IN/p.yaml --data IN/d.npz -o OUT/s.json --save-ranges OUT/s.ranges"
        " --checkpoint-every 0",
        ("s.json", "s.ranges"),
    ),
    Command(
        "calibrate --shard",
        "calibrate IN/m.onnx IN/p.yaml --data IN/d.npz -o OUT/1.ranges --shard 1/2",
        ("1.ranges",),
    ),
    Command("apply", "apply IN/m.onnx IN/p.yaml IN/s.json -o OUT/a.onnx", ("a.onnx", "w.bin")),
    Command(
        "strip",
        "strip IN/q.onnx -o OUT/f.onnx --ranges OUT/f.yaml",
        ("f.onnx", "w.bin", "f.yaml"),
        source="q.onnx",
    ),
    Command("cast", "cast IN/m.onnx -o OUT/h.onnx", ("h.onnx",)),
    Command("check --fix", "check --fix OUT/fix.onnx", ("fix.onnx",), "", False, "fix.onnx"),
    Command(
        "check --write-baseline",
        "check IN/q.onnx --write-baseline OUT/b.json",
        ("b.json",),
        source="q.onnx",
        force=False,
        keeps_others=True,
    ),
    Command(
        "sensitivity",
        "sensitivity IN/m.onnx --data IN/d.npz --plot OUT/s.svg --report OUT/s.json",
        ("s.svg", "s.json"),
    ),
    Command(
        "ranges merge",
        "ranges merge IN/1.ranges IN/2.ranges -o OUT/all.ranges",
        ("all.ranges",),
        source="1.ranges",
    ),
    Command(
        "ranges export",
        "ranges export IN/s.json --format yaml -o OUT/r.yaml",
        ("r.yaml",),
        source="s.json",
    ),
    Command(
        "validate --report",
        "validate IN/m.onnx IN/q.onnx --data IN/d.npz --report OUT/v.json",
        ("v.json",),
    ),
    Command(
        "check --report",
        "check IN/q.onnx --report OUT/c.html --report OUT/c.md",
        ("c.html", "c.md"),
        source="q.onnx",
    ),
    Command("diff --report", "diff IN/m.onnx IN/q.onnx --report OUT/d.html", ("d.html",)),
    Command("probe", "probe --target rtx:sm86 --operators Add -o OUT/t.yaml", ("t.yaml",), ""),
    Command(
        "rules docs",
        "rules docs -o OUT/",
        ("rules.md", "facts.md", "findings.md", "json.md", "commands.md"),
        "",
    ),
    Command(
        "new-rule",
        "new-rule mine --rules OUT/",
        ("mine.yaml", "cases/mine.yaml", "schema.json"),
        "",
        force=False,
        keeps_others=True,
    ),
)

State = dict[str, bytes]


@dataclass
class Bench:
    """One command with its folders and the outcomes of its runs."""

    command: Command
    inputs: Path
    out: Path
    reference: State = field(default_factory=dict)
    seconds: float = 0.0
    #: Outcomes that must not be.
    failures: list[str] = field(default_factory=list)

    def prepare(self, old: bool) -> State:
        """Empty the folder of outputs, write old ones if asked, and return its content."""
        clear(self.out)
        if self.command.in_place:
            shutil.copy(self.inputs / self.command.in_place, self.out)
        elif old and not self.command.keeps_others:
            for name in self.command.outputs:
                (self.out / name).write_bytes(OLD)
        return read_folder(self.out)

    def start(self, force: bool = True, **options: object) -> subprocess.Popen[bytes]:
        """Start the command."""
        argv = self.command.argv(self.inputs, self.out, force)
        pipe = subprocess.DEVNULL
        environment = checkout_environment(TMPDIR=str(self.inputs.parent / "tmp"))
        return subprocess.Popen(argv, stdout=pipe, stderr=pipe, env=environment, **options)  # type: ignore[call-overload,no-any-return]

    def measure(self) -> None:
        """Keep what a whole run writes and how long it takes."""
        self.prepare(old=False)
        begin = time.monotonic()
        code = self.start().wait()
        self.seconds = time.monotonic() - begin
        self.reference = read_folder(self.out)
        if code not in (0, 1) or not set(self.command.outputs) <= set(self.reference):
            raise SystemExit(f"{self.command.name}: exit {code}, wrote {sorted(self.reference)}")

    def describe(self, before: State, situation: str) -> str:
        """Return what a run left, in words, and note what must not be."""
        after = read_folder(self.out)
        states = {name: self._describe_output(name, before, after) for name in self.reference}
        words = sorted(set(states.values()))
        broken = [name for name, state in states.items() if state not in (BEFORE, COMPLETE)]
        if broken:
            self.failures.append(f"{self.command.name}, {situation}: {broken} {words}")
        if len(words) > 1:
            words = [f"{name} {states[name]}" for name in states]
        extra = sorted(set(after) - set(before) - set(self.reference))
        parts = [", ".join(words)]
        if any(TEMPORARY in name for name in extra):
            parts.append(self._remove_rest(situation))
        if any(name.endswith(".checkpoint") and TEMPORARY not in name for name in extra):
            parts.append("checkpoint")
        return " + ".join(parts)

    def _describe_output(self, name: str, before: State, after: State) -> str:
        if after.get(name) == before.get(name):
            return BEFORE
        return COMPLETE if after.get(name) == self.reference[name] else "BROKEN"

    def _remove_rest(self, situation: str) -> str:
        """Run the command again after one that left temporary files, which it must remove."""
        self.start().wait()
        if any(TEMPORARY in name for name in read_folder(self.out)):
            self.failures.append(f"{self.command.name}, {situation}: a temporary file stays")
        return "temporary files until the next run"


def clear(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_folder(folder: Path) -> State:
    """Return the bytes of the files in a folder, also through links, by relative path."""
    state = {}
    for path in folder.rglob("*"):
        if path.is_file():
            state[str(path.relative_to(folder))] = path.read_bytes()
    return state


def join(outcomes: Sequence[str]) -> str:
    """Return different outcomes in one cell, the most frequent first."""
    names = sorted(set(outcomes), key=lambda name: (-outcomes.count(name), name))
    return "; ".join(names)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a file system of some bytes at a folder; yields False where that is not allowed."""
    options = ["-t", "tmpfs", "-o", f"size={max(size, PAGE)}", "tmpfs", str(folder)]
    mounted = not subprocess.run(["mount", *options], capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def run_on_full_disk(bench: Bench) -> str:
    """Return the outcomes on disks that have room for none, some and nearly all of the outputs."""
    pages = sum(-(-len(content) // PAGE) for content in bench.reference.values())
    outcomes = []
    for part in range(5):
        free = pages * part // 5 * PAGE
        for old in (False, True):
            outcomes += fill_disk(bench, free, old)
    return join(outcomes)


def fill_disk(bench: Bench, free: int, old: bool) -> list[str]:
    used = sum(-(-len(content) // PAGE) * PAGE for content in bench.prepare(old).values())
    with small_disk(bench.out, used + free + PAGE) as mounted:
        before = bench.prepare(old) if mounted else read_folder(bench.out)
        if mounted:
            (bench.out / "rest").write_bytes(bytes(PAGE))
        limit = max(free, 1)

        def limit_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        code = bench.start(preexec_fn=None if mounted else limit_files).wait()
        situation = f"{free} bytes free"
        outcome = bench.describe(before, situation)
        if code != 2 and not outcome.startswith(COMPLETE):
            bench.failures.append(f"{bench.command.name}, {situation}: exit {code}, {outcome}")
    return [outcome]


def run_in_read_only_folder(bench: Bench) -> str:
    """Return the outcome where nothing may be written."""
    outcomes = []
    for old in (False, True):
        with small_disk(bench.out, 1 << 26) as mounted:
            before = bench.prepare(old)
            if mounted:
                remount = ["mount", "-o", "remount,ro", str(bench.out)]
                subprocess.run(remount, check=True)
            else:
                bench.out.chmod(0o555)
            bench.start().wait()
            outcomes.append(bench.describe(before, "read-only"))
            if not mounted:
                bench.out.chmod(0o755)
    return join(outcomes)


def run_until_signal(bench: Bench, number: signal.Signals, moments: int) -> str:
    """Return the outcomes of runs that a signal ends at different moments."""
    outcomes = []
    for moment in range(moments):
        delay = bench.seconds * (moment + 1) / (moments + 1)
        outcomes.append(interrupt(bench, number, moment, delay))
    for moment in range(moments):
        outcomes.append(interrupt(bench, number, moment, None))
    return join(outcomes)


def interrupt(bench: Bench, number: signal.Signals, moment: int, delay: float | None) -> str:
    """Return the outcome of a run that ends after some seconds, or at its temporary files."""
    before = bench.prepare(old=bool(moment % 2))
    process = bench.start()
    if delay is None:
        _wait_for_temporary_files(bench.out, process, 1 + moment // 2 % len(bench.reference))
    else:
        time.sleep(delay)
    process.send_signal(number)
    code = process.wait()
    situation = f"{number.name} at moment {moment}"
    outcome = bench.describe(before, situation)
    ended = {-number, 128 + number}
    if code not in ended and not outcome.startswith(COMPLETE):
        bench.failures.append(f"{bench.command.name}, {situation}: exit {code}, {outcome}")
    return outcome


def _wait_for_temporary_files(folder: Path, process: subprocess.Popen[bytes], count: int) -> None:
    """Wait until a process has written some temporary files to a folder, or ends."""
    seen: set[str] = set()
    while len(seen) < count and process.poll() is None:
        seen |= {name for name in os.listdir(folder) if name.startswith(TEMPORARY)}
        time.sleep(_POLL_SECONDS)


def run_over_link(bench: Bench) -> str:
    """Return the outcome where the first output is a link to a file in another folder."""
    if bench.command.keeps_others:
        return "refused"
    bench.prepare(old=True)
    link = bench.out / bench.command.outputs[0]
    behind = bench.inputs.parent / "behind"
    behind.unlink(missing_ok=True)
    link.rename(behind)
    link.symlink_to(behind)
    before = read_folder(bench.out)
    bench.start().wait()
    outcome = bench.describe(before, "link")
    if not link.is_symlink():
        bench.failures.append(f"{bench.command.name}: the link was replaced")
    return f"{outcome}, the file behind it" if outcome == COMPLETE else outcome


def run_over_input(bench: Bench) -> str:
    """Return the outcome where an output is another name of an input."""
    if not bench.command.source:
        return "-"
    source = bench.inputs / bench.command.source
    outcomes = []
    for link in (Path.symlink_to, Path.hardlink_to):
        for name in bench.command.outputs:
            bench.prepare(old=False)
            with suppress(FileExistsError):
                link(bench.out / name, source)
            before, content = read_folder(bench.out), source.read_bytes()
            code = bench.start().wait()
            outcomes.append("refused" if code == 2 else f"exit {code}")
            bench.describe(before, "input")
            if source.read_bytes() != content:
                bench.failures.append(f"{bench.command.name}: {name} replaced the input")
    return join(outcomes)


def write_inputs(folder: Path) -> None:
    """Write what the commands read: a model with external data, samples, and what qdq makes."""
    rng = np.random.default_rng(0)
    size = _WEIGHT_SIZE
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,{size}] x) => (float[1,{size}] y) {{
          h = MatMul (x, w)
          y = Relu (h)
        }}"""
    )
    weight = rng.standard_normal((size, size)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin")
    np.savez(folder / "d.npz", x=rng.standard_normal((8, size)).astype(np.float32))
    shutil.copy(CHECKOUT / "fixtures" / "peers" / "torch_eager.onnx", folder / "fix.onnx")
    calibrate = f"calibrate {folder}/m.onnx {folder}/p.yaml --data {folder}/d.npz"
    for line in (
        f"plan {folder}/m.onnx -o {folder}/p.yaml",
        f"{calibrate} -o {folder}/s.json",
        f"{calibrate} --shard 1/2 -o {folder}/1.ranges",
        f"{calibrate} --shard 2/2 -o {folder}/2.ranges",
        f"apply {folder}/m.onnx {folder}/p.yaml {folder}/s.json -o {folder}/q.onnx",
    ):
        argv = [*QDQ, *line.split()]
        subprocess.run(argv, check=True, capture_output=True, env=checkout_environment())


def run_situations(command: Command, root: Path, moments: int) -> tuple[list[str], list[str]]:
    """Return the cells of a command's row, and what must not be."""
    out = root / "out"
    out.mkdir(exist_ok=True)
    bench = Bench(command, root / "in", out)
    bench.measure()
    inputs = read_folder(bench.inputs)
    cells = [run_on_full_disk(bench), run_in_read_only_folder(bench)]
    cells += [run_until_signal(bench, number, moments) for number in SIGNALS]
    cells += [run_over_link(bench), run_over_input(bench)]
    if read_folder(bench.inputs) != inputs:
        bench.failures.append(f"{command.name}: an input changed")
    return cells, bench.failures


def main() -> int:
    """Print the table; return 1 where something is on disk that must not be."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("names", nargs="*", help="commands to run, all by default")
    options.add_argument("--moments", type=int, default=8)
    arguments = options.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    headers = ("full disk", "read-only folder", *(number.name for number in SIGNALS))
    print(markdown_head(("command", *headers, "output is a link", "output is an input")))
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("in", "tmp"):
            (root / name).mkdir()
        write_inputs(root / "in")
        for command in COMMANDS:
            if arguments.names and command.name.split()[0] not in arguments.names:
                continue
            cells, command_failures = run_situations(command, root, arguments.moments)
            print(markdown_row((f"`{command.name}`", *cells)), flush=True)
            failures += command_failures
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
