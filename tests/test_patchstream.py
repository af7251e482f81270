"""Training from a store of patches: every patch once an epoch, every chunk read once, memory bounded, splits kept."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bigearthnet import make_patch, name
from test_bigearthnet_store import SCENE, make_table, make_v2

from geoflow.errors import JobError, LabelError
from geoflow.inputs import NODATA, InputSpec, channel_statistics
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import load_job
from geoflow.jobs.outcome import split_finished
from geoflow.jobs.patchingest import ingest_patches
from geoflow.jobs.patchsource import source_of
from geoflow.jobs.tasks import perform
from geoflow.labels.patchplan import PatchOptions
from geoflow.labels.patchstore import read_store
from geoflow.labels.splits import TEST, TRAIN, VALIDATION
from geoflow.learning.classifier import fit_classifier, fit_patches
from geoflow.learning.options import ClassifierOptions
from geoflow.learning.patchstream import PatchSource, PatchStream
from geoflow.legends import legend

PLAIN = InputSpec(("B02",), ("patch",), (0.0,), (1.0,))
SIDE = 8
PATCH_BYTES = 2 * SIDE * SIDE


class Reader:
    """Patches whose pixels are their numbers; remembers which chunks were read."""

    def __init__(self, count: int, chunk: int) -> None:
        self.count, self.chunk = count, chunk
        self.reads: list[int] = []

    def __call__(self, places: slice) -> np.ndarray:
        assert places.start % self.chunk == 0
        self.reads.append(places.start // self.chunk)
        rows = np.arange(self.count)[places]
        return np.broadcast_to(rows[:, None, None, None], (len(rows), 1, SIDE, SIDE)).astype(np.int16)


def stream(reader: Reader, train: np.ndarray, batch: int, chunks_at_once: int) -> PatchStream:
    """Labels are the bits of a patch's number, so that a mix-up of pixels and labels shows."""
    labels = (np.arange(reader.count)[:, None] >> np.arange(12)) & 1 == 1
    source = PatchSource(reader, reader.chunk, (1, SIDE, SIDE), labels, train, train, ((0.0,), (1.0,)))
    return PatchStream(source, labels, PLAIN, batch, 5, 2 * chunks_at_once * reader.chunk * PATCH_BYTES / 2**20)


@settings(max_examples=80)
@given(
    count=st.integers(2, 90),
    chunk=st.integers(1, 20),
    batch=st.integers(2, 9),
    at_once=st.integers(1, 4),
    share=st.floats(0.2, 1),
    seed=st.integers(0, 999),
)
def test_an_epoch_shows_every_patch_once_and_reads_every_chunk_once(count, chunk, batch, at_once, share, seed):
    rng = np.random.default_rng(seed)
    train = np.sort(rng.choice(count, max(2, int(share * count)), replace=False))
    reader = Reader(count, chunk)
    data = stream(reader, train, batch, at_once)
    batches = list(data.epoch(train, seed))
    assert len(batches) == -(-len(train) // batch)
    seen = [int(v) for x, _ in batches for v in x[:, 0, 0, 0]]
    extra = len(seen) - len(train)
    assert extra == (len(train) % batch == 1)  # batch norm wants two: one patch is shown again beside the last
    assert sorted(set(seen)) == train.tolist()
    assert all(len(x) >= 2 for x, _ in batches)
    for x, y in batches:
        numbers = (y.astype(int) << np.arange(12)).sum(axis=1)
        np.testing.assert_array_equal(numbers, x[:, 0, 0, 0])
    assert sorted(reader.reads) == np.unique(train // chunk).tolist()
    rows = np.concatenate([rows for rows, _ in data.plain(train)])
    np.testing.assert_array_equal(rows, train)


def test_epochs_differ_and_mix_chunks():
    reader = Reader(600, 20)
    data = stream(reader, np.arange(600), 10, 5)
    orders = [[int(v) for x, _ in data.epoch(np.arange(600), n) for v in x[:, 0, 0, 0]] for n in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    mixed = [len({v // 20 for v in orders[0][at : at + 10]}) for at in range(0, 600, 10)]
    assert np.mean(mixed) > 3


def test_what_fits_is_read_once_and_shuffled_whole():
    """The chunks of the store do not show in what is learned from it."""
    batches = []
    for chunk in (7, 60):
        reader = Reader(60, chunk)
        data = stream(reader, np.arange(60), 8, 20)
        batches.append([x for n in range(3) for x, _ in data.epoch(np.arange(60), n)])
        assert len(reader.reads) == -(-60 // chunk)
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pixels_take_no_more_memory_than_they_may():
    side, chunk, chunks = 64, 16, 40
    patch = np.random.default_rng(0).integers(0, 9000, (chunk, 1, side, side)).astype(np.int16)
    source = PatchSource(
        lambda places: patch.copy(),
        chunk,
        (1, side, side),
        np.ones((chunk * chunks, 1), bool),
        np.arange(chunk * chunks),
        np.arange(2),
        ((0.0,), (1.0,)),
    )
    data = PatchStream(source, source.labels, PLAIN, 8, 0, 1)  # of 5.2 MB in all
    tracemalloc.start()
    for _ in data.epoch(source.train, 0):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * 2**20, peak


def test_a_failing_read_is_an_error_of_the_training():
    def read(places: slice) -> np.ndarray:
        raise OSError("the disk is gone")

    source = PatchSource(read, 4, (1, 8, 8), np.ones((40, 1), bool), np.arange(30), np.arange(30, 40), ((0.0,), (1.0,)))
    with pytest.raises(OSError, match="the disk is gone"):
        list(PatchStream(source, source.labels, PLAIN, 8, 0, 0).epoch(source.train, 0))


# --- from a store ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen patches of version 2 in four chunks, with an official split; one cannot be read."""
    folder = tmp_path_factory.mktemp("store")
    patches = [make_v2(folder / "in", n, (211, 231) if n % 2 else (311,), seed=n) for n in range(17)]
    (folder / "in/BigEarthNet-S2" / SCENE / patches[16] / f"{patches[16]}_B02.tif").unlink()
    parts = ["train"] * 10 + ["validation"] * 4 + ["test"] * 2 + ["train"]
    rows = [{"patch_id": patch, "split": part} for patch, part in zip(patches, parts, strict=True)]
    make_table(folder / "in/metadata.parquet", rows)
    ingest_patches(folder / "in", folder / "a.zarr", PatchOptions(chunk=5), "threads")
    return folder / "a.zarr"


def test_training_and_validation_are_those_of_the_split(store):
    options = ClassifierOptions()
    bands = ("B08", "B02")
    source = source_of(store, bands, "level3", None, options)
    made = read_store(store)
    official, valid = made.facts("split_official"), made.facts("valid") == 1
    np.testing.assert_array_equal(source.train, np.flatnonzero(valid & (official == TRAIN)))
    np.testing.assert_array_equal(source.held, np.flatnonzero(valid & (official == VALIDATION)))
    assert (len(source.train), len(source.held)) == (10, 4)
    cube = source.read(slice(0, 5))
    np.testing.assert_array_equal(cube, made.facts("cube")[:5, [7, 1]])
    mean, std = channel_statistics([made.facts("cube")[i][None, [7, 1]] for i in source.train])
    np.testing.assert_allclose(source.statistics, (mean, std), rtol=1e-9)
    random = source_of(store, bands, "nineteen", "random", options)
    np.testing.assert_array_equal(random.held, np.flatnonzero(valid & (made.facts("split_random") == VALIDATION)))
    assert not np.isin(np.flatnonzero(official == TEST), [*source.train, *source.held]).any()
    with pytest.raises(LabelError, match=r"no band B10; it has B01"):
        source_of(store, ("B10",), "level3", None, options)
    with pytest.raises(LabelError, match="no split 'user'; it has official, random, squares"):
        source_of(store, bands, "level3", "user", options)


def test_labels_that_nobody_knows_are_refused(tmp_path):
    for number in range(2):
        make_v2(tmp_path / "in", number)
    table = make_table(tmp_path / "m.parquet", [{"patch_id": f"{SCENE}_{n}_43"} for n in range(2)])
    (tmp_path / "in/Reference_Maps").rename(tmp_path / "elsewhere")
    ingest_patches(tmp_path / "in", tmp_path / "a.zarr", PatchOptions(metadata=(table,)), "threads")
    with pytest.raises(LabelError, match=r"no patch tells its labels of level3; set classifier\.labels"):
        source_of(tmp_path / "a.zarr", ("B02",), "level3", None, ClassifierOptions())
    # nothing is held back by this split, so a random share is
    known = source_of(tmp_path / "a.zarr", ("B02",), "nineteen", None, ClassifierOptions())
    assert (len(known.train), len(known.held)) == (1, 1)


def test_a_classifier_learns_from_a_store_as_from_memory(store):
    """The same patches, the same net, to the last bit, whatever the chunks."""
    options = ClassifierOptions(encoder="resnet18", head_epochs=0, epochs=1, batch=4)
    source = source_of(store, ("B02", "B08"), "level3", None, options)
    codes = legend("corine").codes()
    trained = fit_patches(source, codes, legend("corine"), ("B02", "B08"), options)
    assert trained.card.codes == (211, 231, 311)
    assert trained.card.training["validation"]["patches"] == 4
    whole = read_store(store).facts("cube")[:, [1, 7]]
    held = PatchSource(
        whole.__getitem__, len(whole), whole.shape[1:], source.labels, source.train, source.held, source.statistics
    )
    again = fit_patches(held, codes, legend("corine"), ("B02", "B08"), options)
    assert all((again.state[key] == value).all() for key, value in trained.state.items())
    with pytest.raises(LabelError, match="too few"):
        fit_classifier(whole[:1], source.labels[:1], codes, legend("corine"), ("B02", "B08"))


# --- in a job -------------------------------------------------------------------------------------------------------


def run_patches(flow: Flow) -> tuple[int, int]:
    """Tasks done and kept of the stage of patches, in this process."""
    stage = next(stage for stage in flow.stages() if stage.name == "patches")
    stage.prepare()
    todo, outcome = split_finished(stage.tasks(), flow.receipts)
    for task in todo:
        perform(task, flow.out)
    stage.finish()
    return len(todo), outcome.skipped


def test_a_job_makes_its_own_store_and_goes_on_with_it(tiny_job, tmp_path):
    source = tmp_path / "in"
    for number in range(3):
        make_patch(source, name(number), seed=number)
    out = tmp_path / "out"

    def flow(**changes) -> Flow:
        section = {"source": str(source), "options": {"encoder": "resnet18"}, **changes}
        return Flow(load_job(tiny_job(classifier=section, name="patches")), out)

    first = flow()
    assert run_patches(first) == (1, 0)
    store = read_store(out / "patches.zarr")
    assert store.described["complete"]
    assert store.bands == ("B02", "B03", "B04", "B08")
    assert run_patches(flow()) == (0, 1)
    assert flow()._classifier_tasks[0].id == first._classifier_tasks[0].id
    (tmp_path / "cloud.csv").write_text(f"{name(1)}\n")
    fewer = flow(exclude=[str(tmp_path / "cloud.csv")])
    assert fewer._classifier_tasks[0].id != first._classifier_tasks[0].id
    assert run_patches(fewer) == (1, 0)
    assert read_store(out / "patches.zarr").described["dropped"] == {"cloud or shadow": 1}
    kept = flow(exclude=[str(tmp_path / "cloud.csv")], keep_flagged=True)
    assert run_patches(kept) == (1, 0)
    assert read_store(out / "patches.zarr").patches == 3
    make_patch(source, name(7))  # one more patch is another store
    assert run_patches(flow()) == (1, 0)
    (out / "patches.zarr/cube/c/0/0/0/0").unlink()
    assert run_patches(flow()) == (1, 0)
    assert (read_store(out / "patches.zarr").facts("cube") != NODATA).all()


def test_a_job_takes_a_store_as_it_is(tiny_job, tmp_path, store):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}

    def flow(**changes) -> Flow:
        section = {"source": str(store), **changes}
        return Flow(load_job(tiny_job(classifier=section, name="taken")), tmp_path / "out")

    taken = flow(labels="nineteen", split="official")
    assert run_patches(taken) == (0, 0)
    assert taken._classifier_tasks[0].work.patches == store
    assert taken._classifier_tasks[0].id != flow()._classifier_tasks[0].id
    with pytest.raises(JobError, match=r"classifier\.keep_flagged: .*a\.zarr is a store, made without it"):
        _ = flow(keep_flagged=True).patch_id
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
