"""Observing on a Dask cluster of real processes: the bytes of one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import qdq
from qdq.data.feeds import Subset
from qdq.data.images import Images
from qdq.errors import DataError, UsageError
from qdq.graph.index import GraphIndex
from qdq.observers.collection import CollectionJob, Observing, collect_locally
from qdq.observers.distributed import collect_ranges
from qdq.ranges.range_file import encode_ranges, read_checkpoint
from qdq.ranges.tensor_ranges import Part
from tests.support.cli_runner import run, samples, save, tiny_model
from tests.support.graphs import convolution, noise
from tests.support.paths import NETWORKS


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Give two worker processes that are started again when they die."""
    with started() as local_cluster:
        yield local_cluster


def started(tries: int = 3) -> LocalCluster:
    """Start a cluster; on a machine that is busy enough, Dask gives up waiting for its own thread after ten seconds."""
    try:
        return LocalCluster(
            2, threads_per_worker=1, dashboard_address=":0", memory_limit=0, silence_logs=50
        )
    except (AssertionError, RuntimeError):
        if not tries:
            raise
        return started(tries - 1)


def job_of(model: Any, data: Any) -> CollectionJob:
    source = qdq.load(model)
    return CollectionJob(GraphIndex(source), qdq.plan(source), data, full=True)


@pytest.mark.parametrize("data", ["file", "noise", "script", "list", "some"])
def test_workers_give_the_bytes_of_one_process(
    cluster: LocalCluster, tmp_path: Path, data: str
) -> None:
    model: Any = NETWORKS / "digits_cnn.onnx"
    samples_of_job: Any = str(NETWORKS / "digits-calibration.npz")
    if data == "noise":
        samples_of_job = Subset("noise", 20, 1)
    if data == "some":
        samples_of_job = Subset(samples_of_job, 30, seed=4)
    if data in ("script", "list"):
        model = convolution()
        samples_of_job = [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(11)]
    if data == "script":
        samples_of_job = f"{tmp_path / 'loader.py'}:batches"
        Path(tmp_path / "loader.py").write_text(
            "import numpy as np\ndef batches():\n    for i in range(11):\n        yield {'x': np.full((1, 3, 6, 6), i + .5, np.float32)}\n"
        )
    job, progress = job_of(model, samples_of_job), list[int]()
    got = collect_ranges(job, Observing(scheduler=cluster.scheduler_address), progress.append)
    assert encode_ranges(got) == encode_ranges(collect_locally(job))
    assert progress[-1] == got.samples
    part = Part(2, 3)
    assert encode_ranges(
        collect_ranges(job, Observing(scheduler=cluster.scheduler_address, part=part))
    ) == encode_ranges(collect_locally(job, Observing(part=part)))


def test_a_worker_killed_in_the_middle_changes_nothing(cluster: LocalCluster) -> None:
    job = job_of(NETWORKS / "digits_cnn.onnx", Subset(str(NETWORKS / "digits-calibration.npz"), 60))
    killed = list[int]()

    def kill_one(done: int) -> None:
        if not killed:
            killed.append(done)
            with Client(cluster.scheduler_address) as client:
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    got = collect_ranges(job, Observing(scheduler=cluster.scheduler_address), kill_one)
    assert 0 < killed[0] < 60
    assert encode_ranges(got) == encode_ranges(collect_locally(job))


def test_what_workers_find_wrong_is_said_as_in_one_process(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    folder = samples(tmp_path / "samples", 6)
    (folder / "3.npz").write_bytes(b"nothing")
    for observing in (Observing(), Observing(scheduler=cluster.scheduler_address)):
        with pytest.raises(DataError, match=r"3\.npz"):
            collect_ranges(job_of(tiny_model(), str(folder)), observing)


def test_a_generator_cannot_be_shared_out(cluster: LocalCluster) -> None:
    data = ({"x": noise(1, 3, 6, 6, seed=i)} for i in range(4))
    with pytest.raises(DataError, match="every worker reads its own samples"):
        collect_ranges(job_of(convolution(), data), Observing(scheduler=cluster.scheduler_address))


def test_a_model_that_differs_on_a_worker_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    path = save(tiny_model(), tmp_path / "model.onnx")
    job = job_of(path, "noise")
    save(convolution(), path)
    with pytest.raises(qdq.QdqError, match="a worker has another file there"):
        collect_ranges(job, Observing(scheduler=cluster.scheduler_address))


class Stopped(BaseException):
    """What stops a run here."""


def test_a_shared_run_goes_on_from_its_checkpoint(cluster: LocalCluster, tmp_path: Path) -> None:
    job = job_of(NETWORKS / "digits_cnn.onnx", str(NETWORKS / "digits-calibration.npz"))
    observing = Observing(
        scheduler=cluster.scheduler_address, checkpoint=tmp_path / "c", interval=0.0, resume=True
    )

    def stop(done: int) -> None:
        if done > 20:
            raise Stopped

    with pytest.raises(Stopped):
        collect_ranges(job, observing, stop)
    (kept,) = read_checkpoint(tmp_path / "c").passes
    assert 0 < kept.samples < 64
    progress = list[int]()
    assert encode_ranges(collect_ranges(job, observing, progress.append)) == encode_ranges(
        collect_locally(job)
    )
    assert progress[0] > kept.samples


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every rest worth processes, as long work on a machine of eight cores is."""
    monkeypatch.setattr("qdq.observers.distributed.count_cores", lambda: 8)
    monkeypatch.setattr("qdq.observers.distributed._START_SECONDS", 0.0)


@pytest.mark.usefixtures("many_cores")
def test_workers_of_the_command_line(tmp_path: Path) -> None:
    model, data = save(tiny_model(), tmp_path / "model.onnx"), samples(tmp_path / "samples", 6)
    assert run("quantize", model, "--data", data, "-o", tmp_path / "one.onnx")[0] == 0
    assert run(
        "quantize",
        model,
        "--data",
        data,
        "-o",
        tmp_path / "two.onnx",
        "--workers",
        2,
        "--max-memory",
        "2GB",
    ) == (0, *run_text(tmp_path))
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def run_text(folder: Path) -> tuple[str, str]:
    """Return what the run without workers prints, under the other name."""
    _, out, err = run(
        "quantize",
        folder / "model.onnx",
        "--data",
        folder / "samples",
        "-o",
        folder / "one.onnx",
        "--force",
    )
    return out.replace("one.onnx", "two.onnx"), err


def refuse_processes(*_: Any, **__: Any) -> None:
    raise RuntimeError("Cluster failed to start")


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_no_process_starts_where_one_keeps_the_cores_busy(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr("qdq.observers.distributed.count_cores", lambda: cores)
    monkeypatch.setattr("qdq.observers.distributed._START_SECONDS", 0.0)
    monkeypatch.setattr("distributed.LocalCluster", refuse_processes)
    job = job_of(NETWORKS / "digits_cnn.onnx", str(NETWORKS / "digits-calibration.npz"))
    progress = list[int]()

    observed = collect_ranges(job, Observing(workers=2), progress.append)

    assert encode_ranges(observed) == encode_ranges(collect_locally(job))
    assert progress == sorted(progress)
    assert progress[-1] == 64


def test_no_process_starts_for_a_few_seconds_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdq.observers.distributed.count_cores", lambda: 64)
    monkeypatch.setattr("distributed.LocalCluster", refuse_processes)
    job = job_of(NETWORKS / "digits_cnn.onnx", str(NETWORKS / "digits-calibration.npz"))

    observed = collect_ranges(job, Observing(workers=4))

    assert encode_ranges(observed) == encode_ranges(collect_locally(job))


def test_processes_finish_what_one_process_began(many_cores: None) -> None:
    job = job_of(NETWORKS / "digits_cnn.onnx", str(NETWORKS / "digits-calibration.npz"))
    progress = list[int]()

    observed = collect_ranges(job, Observing(workers=2), progress.append)

    assert encode_ranges(observed) == encode_ranges(collect_locally(job))
    assert progress[-1] == 64


def test_processes_that_do_not_start_are_one_line(
    many_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.LocalCluster", refuse_processes)
    with pytest.raises(
        UsageError,
        match=r"Dask could not start 2 processes: RuntimeError: Cluster failed to start\. Pass a",
    ):
        collect_ranges(job_of(convolution(), "noise"), Observing(workers=2))


def test_no_scheduler_and_no_dask_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdq.observers.distributed._TIMEOUT", 0.5)
    job = job_of(convolution(), "noise")
    with pytest.raises(UsageError, match="no Dask scheduler with workers answers"):
        collect_ranges(job, Observing(scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(UsageError, match="no Dask scheduler"):
        collect_ranges(job, Observing(scheduler="nowhere"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr("qdq.observers.distributed.count_cores", lambda: 8)
    with pytest.raises(UsageError, match=r"pip install 'qdq\[dask\]'"):
        collect_ranges(job, Observing(workers=2))


def test_pictures_are_shared_out(cluster: LocalCluster, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(5):
        Image.new("RGB", (8, 8), (40 * i, 10, 200)).save(tmp_path / f"{i}.png")
    (tmp_path / "way.yaml").write_text("fit: stretch\nscale: 1/255\n")
    job = job_of(convolution(), Images(tmp_path, tmp_path / "way.yaml"))
    assert encode_ranges(
        collect_ranges(job, Observing(scheduler=cluster.scheduler_address))
    ) == encode_ranges(collect_locally(job))
