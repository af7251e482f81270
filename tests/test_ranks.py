"""Several ranks train one net: the same curve as one, whoever dies in between."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_resume_training import CLASSIFIER, SEGMENTER
from test_train import BANDS, CODES, CORINE, PERIODS, country
from torch import nn

from geoflow import nets
from geoflow.errors import LabelError, ModelError, RankError
from geoflow.inputs import InputSpec
from geoflow.jobs.outcome import Outcome
from geoflow.jobs.patience import Patience, Watch
from geoflow.jobs.tasks import Done, Task
from geoflow.jobs.together import run_together
from geoflow.jobs.trainwork import Training
from geoflow.learning.lanes import Lanes
from geoflow.learning.loop import Setting
from geoflow.learning.patchstream import PatchSource, PatchStream
from geoflow.learning.ranks import Meeting, Ranks, join
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import survey
from geoflow.learning.train import HeldOut, fit_classifier, fit_segmenter
from geoflow.modelfile import TrainedModel, load_model
from geoflow.nets import Compute

CUBE, _, LABELS = country((160, 128))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(size: int, work: Callable[[Ranks], Any], timeout_s: float = 60) -> list[Any]:
    """The same work on some ranks, a thread each."""
    meeting, found = Meeting("127.0.0.1", free_port(), size, timeout_s), [None] * size

    def run(rank: int) -> None:
        try:
            ranks = join(meeting, rank, "127.0.0.1", "cpu")
            try:
                found[rank] = work(ranks)
            finally:
                ranks.leave()
        except Exception as error:  # noqa: BLE001  (looked at by the test)
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


# --- lanes ----------------------------------------------------------------------------------------------------------


def test_lanes_are_dealt_out_evenly() -> None:
    assert [list(Lanes.of_rank(6, rank, 3).mine) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ModelError, match="cannot be dealt out to 4 ranks"):
        Lanes.of_rank(6, 0, 4)
    with pytest.raises(ModelError, match="make it a multiple"):
        Lanes(4, 0, 4).share(6)


SPEC = InputSpec(BANDS, PERIODS, (1000.0,) * 6, (500.0,) * 6)


def window_batches(lanes: Lanes, blocks_px: int) -> list[tuple[np.ndarray, np.ndarray]]:
    options = SamplerOptions(window_px=32, batch=4, seed=3, memory_mb=1)
    sampler = Sampler(CUBE, LABELS, survey(LABELS, None, blocks_px, CODES), None, options, lanes=lanes)
    return [(b.x, b.target) for b in sampler.batches(SPEC, 12)]


@pytest.mark.parametrize("blocks_px", [32, 160])
def test_ranks_draw_their_part_of_the_same_windows(blocks_px: int) -> None:
    whole = window_batches(Lanes(4, 0, 4), blocks_px)
    for ranks in (2, 4):
        parts = [window_batches(Lanes.of_rank(4, rank, ranks), blocks_px) for rank in range(ranks)]
        for step, (x, target) in enumerate(whole):
            assert (np.concatenate([part[step][0] for part in parts]) == x).all()
            assert (np.concatenate([part[step][1] for part in parts]) == target).all()


def test_lanes_read_blocks_of_their_own() -> None:
    found = survey(LABELS, None, 32, CODES)
    sampler = Sampler(CUBE, LABELS, found, None, SamplerOptions(window_px=32), lanes=Lanes(3, 0, 3))
    owned = [set(np.flatnonzero(sampler.blocks_of(lane))) for lane in range(3)]
    assert set.union(*owned) == set(np.flatnonzero(found.counts.sum(axis=1)))
    assert sum(map(len, owned)) == len(set.union(*owned))


@settings(max_examples=40)
@given(count=st.integers(16, 90), chunk=st.integers(1, 20), at_once=st.integers(1, 9), ranks=st.sampled_from([1, 2, 4]))
def test_ranks_take_their_part_of_the_same_patches(count: int, chunk: int, at_once: int, ranks: int) -> None:
    cube = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 1, 4, 4)).astype(np.int16)
    labels = (np.arange(count)[:, None] >> np.arange(8)) & 1 == 1
    rows = np.arange(count)
    source = PatchSource(cube.__getitem__, chunk, (1, 4, 4), labels, rows, rows, ((0.0,), (1.0,)))
    plain = InputSpec(("B02",), ("patch",), (0.0,), (1.0,))
    memory_mb = at_once * 2 * 2 * chunk * 16 / 2**20

    def epochs(lanes: Lanes) -> list[np.ndarray]:
        stream = PatchStream(source, labels, plain, 8, 5, memory_mb, lanes)
        batches = [pair for number in (0, 1) for pair in stream.epoch(rows, number)]
        assert len(batches) == 2 * stream.steps(rows)
        for x, y in batches:
            numbers = x[:, 0, 0, 0].astype(int)
            assert (y == labels[numbers]).all()
        return [x[:, 0, 0, 0] for x, _ in batches]

    try:
        whole = epochs(Lanes(4, 0, 4))
    except LabelError:  # chunks that do not leave each lane some patches
        event("too few patches")
        return
    parts = [epochs(Lanes.of_rank(4, rank, ranks)) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        assert len(batch) == 8
        assert (np.concatenate([part[step] for part in parts]) == batch).all()


# --- sums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_layers_see_the_whole_batch(dtype: torch.dtype) -> None:
    """Outputs, gradients and running statistics of a net over two ranks are those over one."""
    # The bias before a batch norm has a gradient of zero but for rounding, and how much that is hangs on the weights.
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    net = nn.Sequential(*layers, nn.Conv2d(8, 2, 1)).to(memory_format=torch.channels_last).train()
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(2)) * 3 + 1

    def learned(ranks: Ranks) -> nn.Module:
        made, share = copy.deepcopy(net), len(x) // ranks.size
        ranks.share_layers(made)
        part = x[ranks.rank * share :][:share]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            (made(part).float() ** 2).sum().backward()
        ranks.sum_gradients(list(made.parameters()), 1 / len(x))
        return made

    alone = learned(Ranks())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.5}
    for made in together(2, learned):
        for one, other in zip(made.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, **tolerance)
        for one, other in zip(made.buffers(), alone.buffers(), strict=True):
            torch.testing.assert_close(one, other, **tolerance)


def test_plain_values_are_gathered_in_order() -> None:
    found = together(3, lambda ranks: ranks.gather_plain({"rank": ranks.rank, "long": "x" * 10**ranks.rank}))
    assert found[0] == found[2]
    assert [one["rank"] for one in found[0]] == [0, 1, 2]


def test_ranks_that_do_not_come_are_named() -> None:
    with pytest.raises(RankError, match="rank 0 of 2 did not meet the others"):
        join(Meeting("127.0.0.1", free_port(), 2, timeout_s=1), 0, "127.0.0.1", "cpu")


def test_a_rank_that_leaves_does_not_keep_the_others_waiting() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise ValueError("it fails here")
        began = time.monotonic()
        with pytest.raises(RuntimeError):
            ranks.sum(torch.ones(3))
        assert time.monotonic() - began < 20

    with pytest.raises(ValueError, match="it fails here"):
        together(2, work)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "toy.zarr"
    root = zarr.create_group(folder)
    root.create_array("cube", data=CUBE, chunks=(2, 3, 64, 64))
    root.create_array("labels", data=LABELS, chunks=(64, 64))
    return folder


@pytest.fixture(scope="module")
def pair() -> Iterator[Client]:
    """Two worker processes of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client


# --- the same curve -------------------------------------------------------------------------------------------------

Told = tuple[list[float], dict[str, torch.Tensor]]


@contextmanager
def float32() -> Iterator[None]:
    """One thread, and no bfloat16, whose rounding would hide what is to be seen."""
    found, threads = nets.best_compute, torch.get_num_threads()
    nets.best_compute = lambda: Compute("cpu", False)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        nets.best_compute = found
        torch.set_num_threads(threads)


def segment(ranks: Ranks) -> Told:
    options = dataclasses.replace(SEGMENTER, lanes=2, batch=4, window_px=64, lr=1e-4, decoder_lr=1e-4, context_lr=1e-3)
    told: list[float] = []
    setting = Setting(ranks, progress=lambda news: told.append(news["loss"]))
    model = fit_segmenter(CUBE, LABELS, CORINE, BANDS, PERIODS, options, setting, held_out=HeldOut(64, 0.25, 1))
    return told, dict(model.state)


def classify(ranks: Ranks) -> Told:
    options = dataclasses.replace(CLASSIFIER, lanes=2, batch=8, dropout=0.3, lr=1e-5, head_lr=1e-4, keep="best")
    rng = np.random.default_rng(0)
    cube, labels = rng.integers(0, 4000, (45, 3, 64, 64)).astype(np.int16), rng.random((45, 5)) > 0.5
    told: list[float] = []
    setting = Setting(ranks, progress=lambda news: told.append(news["loss"]))
    return told, dict(fit_classifier(cube, labels, CODES, CORINE, BANDS, options, setting).state)


def on_rank(work: Callable[[Ranks], Told], meeting: Meeting, rank: int) -> Told:
    ranks = join(meeting, rank, "127.0.0.1", "cpu")
    try:
        with float32():
            return work(ranks)
    finally:
        ranks.leave()


@pytest.mark.parametrize("work", [segment, classify])
def test_two_ranks_follow_the_same_curve(work: Callable[[Ranks], Told], pair: Client) -> None:
    """Batch norms and dropout included."""
    meeting = Meeting("127.0.0.1", free_port(), 2)
    futures = [
        pair.submit(on_rank, work, meeting, rank, workers=[worker], allow_other_workers=False, pure=False)
        for rank, worker in enumerate(pair.nthreads())
    ]
    with float32():
        alone, _ = work(Ranks())
    (curve, first), (silent, second) = (future.result() for future in futures)
    assert silent == []
    assert len(alone) == len(curve) >= 9
    np.testing.assert_allclose(curve, alone, atol=1e-4)
    for key, value in first.items():
        assert torch.equal(value, second[key]), "all ranks end in the same weights"


# --- on Dask workers ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TinyTraining(Training):
    """A segmenter of the toy country, from Zarr; some steps are slow, so that a worker can be ended in between."""

    data: Path
    steps: int
    pause_s: float = 0.0

    @property
    def lanes(self) -> int:
        return 2

    def train(self, setting: Setting) -> tuple[TrainedModel, dict[str, Any]]:
        root = zarr.open_group(self.data, mode="r")
        options = dataclasses.replace(SEGMENTER, lanes=2, context_steps=0, decoder_steps=0, steps=self.steps, lr=1e-3)
        if setting.checkpoints is not None:
            setting.checkpoints.every_s = 0.0
        tell = setting.progress or (lambda news: None)

        def progress(news: dict[str, Any]) -> None:
            tell(news)
            (self.data / f"reached-{news['step']}-{os.getpid()}").touch()
            time.sleep(self.pause_s)

        changed = dataclasses.replace(setting, progress=progress)
        trained = fit_segmenter(root["cube"], root["labels"], CORINE, BANDS, PERIODS, options, changed)
        return trained, {"steps": self.steps}


def task_of(work: Training, key: str) -> Task:
    return Task("train", key, key.ljust(64, "0"), work, lanes=work.lanes, gpu=True)


def places(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / name, folder / "scratch" / name, folder / "logs" / name


def test_workers_train_together_and_outlive_one_of_them(pair: Client, toy: Path, tmp_path: Path) -> None:
    """A worker is killed in mid-training: it ends, says so, and ends as if nothing had happened."""
    outcome, said = Outcome(), []
    watch = Watch(say=said.append)
    run_together(pair, task_of(TinyTraining(*places(tmp_path, "plain"), toy, 8), "plain"), tmp_path, outcome, watch)
    assert not outcome.failed
    assert outcome.done == 1
    assert outcome.receipts["plain"]["ranks"] == 2
    assert said == []

    for old in toy.glob("reached-*"):
        old.unlink()

    def kill() -> None:
        while not list(toy.glob("reached-3-*")):
            time.sleep(0.05)
        pids = pair.run(os.getpid)
        first = int(next(toy.glob("reached-3-*")).name.rsplit("-", 1)[1])
        os.kill(next(pid for pid in pids.values() if pid != first), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    work = TinyTraining(*places(tmp_path, "killed"), toy, 8, pause_s=0.3)
    run_together(pair, task_of(work, "killed"), tmp_path, outcome, watch)
    killer.join()
    assert not outcome.failed
    assert outcome.done == 2
    assert len(said) == 1
    assert "was lost in the middle of it; going on from the last checkpoint" in said[0]
    assert not (tmp_path / "scratch" / "killed").exists() or not list((tmp_path / "scratch" / "killed").iterdir())
    steps = sorted(int(path.name.split("-")[1]) for path in toy.glob("reached-*"))
    assert set(steps) == set(range(1, 9))
    assert len(steps) <= 10, f"hardly any step is taken again: {steps}"
    one, other = (load_model(tmp_path / name).trained.state for name in ("plain", "killed"))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-4)
    events = list((tmp_path / "logs" / "killed").glob("events.*"))
    assert events, "TensorBoard has something to show"


@dataclasses.dataclass(frozen=True)
class Failing(TinyTraining):
    def train(self, setting: Setting) -> tuple[TrainedModel, dict[str, Any]]:
        if setting.ranks.rank == 1:
            raise LabelError("the labels hold the code 7, which the legend lacks")
        setting.ranks.sum(torch.ones(1))
        raise AssertionError("not reached")


def test_an_error_of_one_rank_is_what_is_told(pair: Client, toy: Path, tmp_path: Path) -> None:
    outcome, said = Outcome(), []
    work = Failing(*places(tmp_path, "failing"), toy, 1)
    run_together(pair, task_of(work, "failing"), tmp_path, outcome, Watch(say=said.append), Patience(retries=2))
    assert outcome.done == 0
    assert said == []
    assert [failure["error"] for failure in outcome.failed] == ["the labels hold the code 7, which the legend lacks"]


@dataclasses.dataclass(frozen=True)
class Alone(Training):
    @property
    def lanes(self) -> int:
        return 2

    def train(self, setting: Setting) -> tuple[TrainedModel, dict[str, Any]]:
        raise AssertionError("nothing is trained here")

    def on(self, ranks: Ranks, beside: int) -> Done:
        return Done({"ranks": ranks.size})


def test_one_worker_trains_alone(tmp_path: Path) -> None:
    outcome = Outcome()
    local = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with local as cluster, Client(cluster) as client:
        run_together(client, task_of(Alone(*places(tmp_path, "alone")), "alone"), tmp_path, outcome)
    assert outcome.done == 1
    assert outcome.receipts["alone"]["ranks"] == 1
