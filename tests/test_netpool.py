"""The threads of nets: one a window, whatever the worker, so that its bits do not depend on the worker."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from distributed import Client, LocalCluster, Status, Worker

from geoflow import nets
from geoflow.inputs import InputSpec
from geoflow.legends import legend
from geoflow.mapping import engines, netpool
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model, save_model

CODES = tuple(legend("corine").codes(3))
BANDS = ("B02", "B03", "B04", "B08")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A net whose layers are wide and windows small: what libraries split among threads by channels, not by pixels."""
    with nets.reproducible(0):
        net = nets.build_segmenter("unet", "resnet18", len(BANDS), len(CODES))
    inputs = InputSpec(BANDS, ("summer",), (1500.0,) * 4, (800.0,) * 4)
    folder = tmp_path_factory.mktemp("model") / "model"
    card = ModelCard("segmenter", "unet", "resnet18", {}, inputs, CODES, legend("corine"), 128, 32)
    save_model(folder, TrainedModel(card, net.state_dict()))
    return load_model(folder)


@pytest.mark.parametrize("name", ["torch-fp32", "torch-bf16", "openvino-fp32"])
def test_a_window_has_the_same_bits_whatever_the_threads_of_the_worker(
    model: LoadedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = np.random.default_rng(0).normal(size=(3, len(BANDS), 128, 128)).astype(np.float32)
    found = []
    for threads in (1, 2, 17):
        monkeypatch.setattr(netpool, "worker_threads", lambda threads=threads: threads)
        monkeypatch.setattr(engines, "worker_threads", lambda threads=threads: threads)
        engines._loaded.cache_clear()
        engine = engines.load_engine(model, name)
        found.append(np.stack(list(netpool.net_pool(engine.gpu).map(lambda x, e=engine: e.logits(x).copy(), windows))))
    engines._loaded.cache_clear()
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_the_pool_leaves_the_threads_of_others_alone() -> None:
    import torch

    before, others = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        netpool._pool.cache_clear()
        own = list(netpool.net_pool(gpu=False).map(lambda _: torch.get_num_threads(), range(4)))
        new = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        new.start()
        new.join()
        others.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert set(own) == {1}
    assert others == [3, 3]


def _pause(dask_worker: Worker) -> None:
    dask_worker.status = Status.paused


def test_blocks_that_are_mapped_at_once_share_the_windows_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netpool, "worker_threads", lambda: 8)
    with netpool.windows_ahead() as one:
        assert one() == 9
        with netpool.windows_ahead() as other:
            assert one() == other() == 5
        assert one() == 9


def test_threads_of_a_worker_that_is_gone_do_not_count() -> None:
    alone = netpool.worker_threads()
    kept = []
    for threads in (3, 4):
        with LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None) as cluster:
            kept.append(next(iter(cluster.workers.values())))  # else its memory might be collected in time
            with Client(cluster) as client:
                assert client.submit(netpool.worker_threads, pure=False).result() == threads
                client.run(_pause)
                assert netpool.worker_threads() == threads
    assert netpool.worker_threads() == alone
    assert len(kept) == 2
