"""What it costs to find the sensitive part of a network, and what that is worth.

    python benchmarks/sensitivity.py rank MODEL DATA [MODEL DATA ...] [--samples 8]
    python benchmarks/sensitivity.py guard MODEL DATA [MODEL DATA ...] [--samples 32] [--repeats 3]
    python benchmarks/sensitivity.py first MODEL DATA [MODEL DATA ...] [--counts 1,2,4,8]

DATA is what `--data` takes. `rank` ranks all groups of the plan with the switchable session and
with one ONNX Runtime session a group: seconds of the processor, Spearman's rank correlation, and
which of the first five the shortlist misses. `guard` runs whole processes of `qdq quantize` with
and without the guard, in turns. `first` compares YOLOv6's way, the first K layers of the rank in
float, with the search, which may leave as much work in float as those: the ratio at the outputs
in dB and the share of the multiply-accumulates in INT8. It prints and judges nothing.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from harness import alternate, markdown_head, markdown_row, measure_python, median

import qdq
from qdq.calibration.calibrator import gather_ranges
from qdq.calibration.methods import DEFAULT_METHOD, parse_method
from qdq.calibration.scale_choice import choose_scales
from qdq.data.feeds import FeedSample, open_feeds
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.observers.collection import DEFAULT_OBSERVING, CollectionJob
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_source
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule_files import load_rules
from qdq.runtime.session import exact_options, open_session
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.layer_groups import LayerGroup
from qdq.sensitivity.output_noise import NoiseReference, NoiseSums, mean_noise
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity
from qdq.sensitivity.scored_tensors import ScoredTensor, find_scored_tensors

_FIRST = 5
_SHORTLIST = 24
_DEFAULT_TARGET = "rtx:sm86"


@dataclass(frozen=True)
class Ranking:
    """The groups of a plan with the noise of each alone, and the seconds that it took."""

    noise: dict[str, float]
    seconds: float

    def first(self, count: int) -> list[str]:
        """Return the names of the groups with the most noise."""
        return sorted(self.noise, key=lambda name: -self.noise[name])[:count]


def main() -> None:
    """Measure and print one comparison."""
    arguments = _parser().parse_args()
    pairs = list(zip(arguments.paths[::2], arguments.paths[1::2], strict=True))
    if arguments.part == "rank":
        compare_rankings(pairs, arguments)
    elif arguments.part == "guard":
        compare_commands(pairs, arguments)
    else:
        compare_first(pairs, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the search for sensitive layers.")
    parser.add_argument("part", choices=("rank", "guard", "first"))
    parser.add_argument("paths", nargs="+", help="models, each followed by its data")
    parser.add_argument("--samples", type=int, default=8, help="samples (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=16, help="calibration samples of rank")
    parser.add_argument("--repeats", type=int, default=3, help="runs (default: %(default)s)")
    parser.add_argument("--counts", default="1,2,4,8", help="layers in float of first")
    parser.add_argument("--target", default=_DEFAULT_TARGET, help="default: %(default)s")
    return parser


def compare_rankings(pairs: Iterable[tuple[str, str]], arguments: argparse.Namespace) -> None:
    """Print a row for each model: both rankings."""
    headers = (
        "model", "groups", "samples", "switchable s", "a session each s", "ratio", "Spearman",
        "missed of the first 5",
    )  # fmt: skip
    print(markdown_head(headers))
    for model, data in pairs:
        calibrated, samples = calibrate(model, data, arguments)
        groups, shortlist, switched = rank_switched(calibrated, samples)
        brute = rank_by_sessions(calibrated, groups, samples)
        missed = [name for name in brute.first(_FIRST) if name not in shortlist]
        row = (
            Path(model).name,
            len(groups),
            len(samples),
            f"{switched.seconds:.1f}",
            f"{brute.seconds:.1f}",
            f"{switched.seconds / brute.seconds:.2f}",
            f"{correlate_ranks(switched, brute):.3f}",
            ", ".join(missed) or "none",
        )
        print(markdown_row(row), flush=True)


def calibrate(
    model: str, data: str, arguments: argparse.Namespace
) -> tuple[CalibratedPlan, list[FeedSample]]:
    """Return a plan with its scales, and the samples to rank with."""
    request = PlanRequest(rules=load_rules(), targets=(qdq.parse_target(arguments.target),))
    index, plan = plan_source(load(Path(model)), request)
    method = parse_method(DEFAULT_METHOD, None)
    subset = qdq.Subset(data, samples=arguments.calibration)
    job = CollectionJob(index, plan, subset, method.needs_histogram, None)
    ranges, _ = gather_ranges(job, DEFAULT_OBSERVING, None, None)
    scales = choose_scales(index, plan, ranges, method, None)
    samples = list(open_feeds(index, qdq.Subset(data, samples=arguments.samples), None).samples())
    return CalibratedPlan(index, plan, scales, ranges), samples


def rank_switched(
    calibrated: CalibratedPlan, samples: Sequence[FeedSample]
) -> tuple[tuple[LayerGroup, ...], set[str], Ranking]:
    """Return the groups, the names in the shortlist, and the ranking by the switchable session."""
    start = processor_seconds()
    sensitivity = PlanSensitivity(calibrated, samples)
    candidates = sensitivity.rank_alone(sensitivity.groups)
    seconds = processor_seconds() - start
    noise = {candidate.group.name: candidate.alone for candidate in candidates}
    shortlist = {group.name for group in sensitivity.shortlist(sensitivity.groups, _SHORTLIST)}
    return sensitivity.groups, shortlist, Ranking(noise, seconds)


def rank_by_sessions(
    calibrated: CalibratedPlan, groups: Iterable[LayerGroup], samples: Sequence[FeedSample]
) -> Ranking:
    """Return the ranking by one rewritten model and one ONNX Runtime session for each group."""
    scored = find_scored_tensors(calibrated.index, calibrated.index.outputs)
    start = processor_seconds()
    references: list[list[NoiseReference]] = []
    for values in run_rewritten(calibrated, None, scored, samples):
        references.append([NoiseReference(array) for array in values])
    noise: dict[str, float] = {}
    for group in groups:
        totals = [NoiseSums() for _ in scored]
        runs = run_rewritten(calibrated, group, scored, samples)
        for reference, values in zip(references, runs, strict=True):
            for i, array in enumerate(values):
                totals[i] = totals[i].add(reference[i].measure(array))
        noise[group.name] = mean_noise(totals)
    return Ranking(noise, processor_seconds() - start)


def run_rewritten(
    calibrated: CalibratedPlan,
    group: LayerGroup | None,
    scored: Sequence[ScoredTensor],
    samples: Sequence[FeedSample],
) -> Iterator[list[np.ndarray]]:
    """Yield the scored tensors of a model with the pairs of one group, or of the float model."""
    index = calibrated.index
    model = index.source.model
    if group is not None:
        plan = msgspec.structs.replace(
            calibrated.plan, placements=group.placements, scale_groups=()
        )
        scales = msgspec.structs.replace(calibrated.scales, plan=plan.key)
        model = apply_plan(index, plan, scales)
    options = exact_options()
    options.intra_op_num_threads = 1
    names = [tensor.name for tensor in scored]
    source = Source(index.source.path, model, "", notes=("rewritten",))
    session = open_session(GraphIndex(source), names, options)
    for sample in samples:
        values = session.run(names, sample.feed)
        yield [tensor.score(array) for tensor, array in zip(scored, values, strict=True)]


def correlate_ranks(first: Ranking, second: Ranking) -> float:
    """Return Spearman's rank correlation; groups without noise share their rank."""
    names = sorted(first.noise)
    ranks = [rank_values([ranking.noise[name] for name in names]) for ranking in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def rank_values(values: Sequence[float]) -> np.ndarray:
    """Return the rank of each value, the mean of the ranks for equal ones."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def processor_seconds() -> float:
    """Return the processor seconds of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare_commands(pairs: Iterable[tuple[str, str]], arguments: argparse.Namespace) -> None:
    """Print a row for each model: `qdq quantize` with and without the guard."""
    headers = ("model", "samples", "guard off: CPU s", "on: CPU s", "ratio", "off: s", "on: s")
    print(markdown_head(headers))
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as folder:
        for model, data in pairs:
            command = ["-m", "qdq", "quantize", str(Path(model).resolve())]
            command += ["-o", str(Path(folder) / "out.onnx"), "--force"]
            command += ["--data", str(Path(data).resolve()), "--samples", str(arguments.samples)]
            command += ["--target", arguments.target]
            commands = {"off": [*command, "--guard", "off"], "on": command}
            runs = alternate(commands, arguments.repeats, measure_python)
            off, on = median(runs["off"]), median(runs["on"])
            row = (
                Path(model).name,
                arguments.samples,
                f"{off.processor_seconds:.1f}",
                f"{on.processor_seconds:.1f}",
                f"{on.processor_seconds / off.processor_seconds:.2f}",
                f"{off.seconds:.1f}",
                f"{on.seconds:.1f}",
            )
            print(markdown_row(row), flush=True)


def compare_first(pairs: Iterable[tuple[str, str]], arguments: argparse.Namespace) -> None:
    """Print a row for each model and number of layers: YOLOv6's way and the search."""
    headers = (
        "model", "layers", "first K: dB", "INT8", "search: layers", "dB", "INT8",
    )  # fmt: skip
    print(markdown_head(headers))
    for model, data in pairs:
        for count in map(int, arguments.counts.split(",")):
            first = quantize(model, data, Budget(first=count), arguments)
            searched = quantize(model, data, Budget(keep_float=first.work), arguments)
            row = (
                Path(model).name,
                count,
                f"{first.snr_db:.1f}",
                f"{first.int8_work:.1%}",
                len(searched.sensitive),
                f"{searched.snr_db:.1f}",
                f"{searched.int8_work:.1%}",
            )
            print(markdown_row(row), flush=True)


def quantize(
    model: str, data: str, budget: Budget, arguments: argparse.Namespace
) -> qdq.PartialResult:
    """Return what a budget measured."""
    subset = qdq.Subset(data, samples=arguments.calibration)
    result = qdq.quantize(
        model,
        subset,
        targets=[arguments.target],
        recovery=qdq.Recovery(budget=budget, methods="off"),
    )
    assert not isinstance(result.partial, (str, type(None)))
    return result.partial


if __name__ == "__main__":
    main()
