"""Where to run: what the words after --cluster mean, and what the clusters that can be started here are like."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from geoflow.errors import ClusterError
from geoflow.extras import how_to_install
from geoflow.jobs import clusterfile as kinds
from geoflow.jobs.clusterkinds import WORKER_ENVIRONMENT, fitting_workers, kubernetes_spec, queue_options, start
from geoflow.jobs.clusters import Needs, connect, where
from geoflow.jobs.versions import code_fingerprint, compare

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "jobs/clusters").glob("*.yaml"))


def refused(values: object) -> str:
    with pytest.raises(ClusterError) as error:
        kinds.parse_cluster(values)
    return str(error.value)


# --- what a word means ----------------------------------------------------------------------------------------------


def test_words_and_what_they_mean(monkeypatch, tmp_path):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert where(None) == where("local") == kinds.Local()
    assert where("threads") == kinds.Local(processes=False)
    assert where("cuda") == kinds.Cuda()
    assert where("tls://host:8786") == kinds.Running(address="tls://host:8786")
    file = tmp_path / "scheduler.json"
    file.write_text("{}")
    assert where(f"file:{file}") == kinds.Running(file=file)


def test_the_environment_names_a_scheduler_unless_the_user_does(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tls://host:8786")
    assert where(None) == kinds.Running(address="tls://host:8786")
    assert where("threads") == kinds.Local(processes=False)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "host")
    with pytest.raises(ClusterError, match=r"DASK_SCHEDULER_ADDRESS 'host' is not known"):
        where(None)


@pytest.mark.parametrize(
    "word", ["", "slurm", "http://host:1", "tcp://host", "tcp://user@host:1", "file:/no/such", "tcp://[::1:8"]
)
def test_a_word_that_means_nothing_is_refused(word):
    with pytest.raises(ClusterError, match=r"--cluster"):
        where(word)


def test_what_is_wrong_in_a_cluster_file_is_named(tmp_path):
    assert "kind must be one of local, cuda, slurm" in refused({"kind": "sge"})
    assert "kind must be one of" in refused(["local"])
    assert "cluster: walltme: unknown key; accepted here: tls, allow" in refused(
        {"kind": "slurm", "walltme": "1:00:00"}
    )
    assert "cluster: memory: '8 gigs' is not an amount of memory" in refused({"kind": "slurm", "memory": "8 gigs"})
    assert "workers.maximum 1 is less than" in refused({"kind": "slurm", "workers": {"minimum": 2, "maximum": 1}})
    assert "workers.max: unknown key" in refused({"kind": "slurm", "workers": {"max": 2, "maximum": 1}})
    assert "must be one line" in refused({"kind": "slurm", "setup": ["module load x\nrm -r y"]})
    assert "AWS_SECRET_ACCESS_KEY looks like a secret" in refused(
        {"kind": "slurm", "environment": {"AWS_SECRET_ACCESS_KEY": "x"}}
    )
    assert "give one of address and file" in refused({"kind": "scheduler"})
    with pytest.raises(ClusterError, match="there is no cluster file"):
        where(str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: !!python/object/apply:os.system [ls]")
    with pytest.raises(ClusterError, match="cannot be read"):
        where(str(broken))


def test_certificates_lie_beside_the_cluster_file(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text(
        yaml.safe_dump(
            {"kind": "scheduler", "address": "tls://host:1", "tls": {"ca": "ca.pem", "cert": "/c", "key": "k"}}
        )
    )
    tls = where(str(file)).tls
    assert (tls.ca, tls.cert, tls.key) == (tmp_path / "ca.pem", Path("/c"), tmp_path / "k")
    with pytest.raises(ClusterError, match=r"tls.ca: there is no file .*ca.pem"), connect(str(file)):
        pass


# --- the examples ---------------------------------------------------------------------------------------------------


def test_every_kind_has_an_example():
    assert {where(str(path)).kind for path in EXAMPLES} == set(kinds.KINDS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid_and_explained(path):
    where(str(path))
    assert path.read_text().startswith("# ")


def test_the_local_example_runs():
    with connect(str(ROOT / "jobs/clusters/local.yaml")) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        assert set(listening()) == {"127.0.0.1"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")


# --- what is started ------------------------------------------------------------------------------------------------


def listening() -> list[str]:
    """Addresses that this process and its children listen on."""
    mine = psutil.Process()
    return [
        connection.laddr.ip
        for process in [mine, *mine.children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]


def test_a_cluster_of_threads_listens_on_loopback_only():
    with connect("threads") as client:
        client.submit(sum, [1, 2]).result()
        assert listening()
        assert set(listening()) == {"127.0.0.1"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")


def test_workers_get_the_environment_and_the_memory_that_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://192.0.2.1:8786")
    names = [*WORKER_ENVIRONMENT, "GDAL_CACHEMAX", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "GDAL_HTTP_PROXY"]
    for name in names:  # clusters that others have started in this process leave theirs behind
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "local.yaml"
    file.write_text("kind: local\nworkers: 1\nthreads: 2\nmemory: 3 GiB\nenvironment: {GDAL_HTTP_PROXY: proxy:3128}")
    with connect(str(file)) as client:
        (found,) = client.run(lambda: {name: os.environ.get(name) for name in names}).values()
        (worker,) = client.scheduler_info()["workers"].values()
        allowed = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures)
    assert not set(names) & set(os.environ), "what is meant for workers stays there"
    assert found == {
        **WORKER_ENVIRONMENT,
        "GDAL_CACHEMAX": "256",
        "GOMP_SPINCOUNT": "1000",
        "OMP_NUM_THREADS": "1",
        "GDAL_HTTP_PROXY": "proxy:3128",
    }
    assert (worker["nthreads"], worker["memory_limit"]) == (2, 3 * 2**30)
    assert allowed == 1
    most = psutil.virtual_memory().total
    cores = len(os.sched_getaffinity(0))
    assert fitting_workers(1, Needs(memory_bytes=most)) == 1, "two such workers do not fit into this machine"
    assert fitting_workers(1, Needs()) == min(cores, most // (3 * 2**30))
    assert fitting_workers(2 * cores, Needs()) == 1


def test_a_worker_a_gpu_each_with_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1a2b")
    with connect("cuda") as client:
        client.wait_for_workers(2, timeout=60)
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        workers = client.scheduler_info()["workers"].values()
        assert sorted(seen.values()) == ["3", "GPU-1a2b"]
        assert [worker["resources"] for worker in workers] == [{"GPU": 1}] * 2
        assert set(listening()) == {"127.0.0.1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ClusterError, match="this machine shows no GPU"), connect("cuda"):
        pass


# --- what goes over a network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:8786", "tcp://host.example:8786", "ucx://192.0.2.1:8786"])
def test_an_unencrypted_scheduler_elsewhere_is_refused_unless_allowed(address, tmp_path):
    with pytest.raises(ClusterError, match=r"leads to another machine, unencrypted: .*run code"), connect(address):
        pass
    scheduler = tmp_path / "scheduler.json"
    scheduler.write_text(f'{{"address": "{address}"}}')
    with pytest.raises(ClusterError, match="unencrypted"), connect(f"file:{scheduler}"):
        pass
    assert kinds.parse_cluster({"kind": "scheduler", "address": address, "allow_insecure": True})


def test_a_scheduler_file_that_is_none_is_refused(tmp_path):
    file = tmp_path / "scheduler.json"
    for text in ("", "[]", "{}", '{"address": 1}', '{"address": "tcp://a"}'):
        file.write_text(text)
        with pytest.raises(ClusterError, match="is not a scheduler file"), connect(f"file:{file}"):
            pass


@pytest.mark.parametrize(
    "values", [{"kind": "ssh", "hosts": ["a"]}, {"kind": "kubernetes", "image": "i"}], ids=lambda v: v["kind"]
)
def test_a_cluster_that_would_be_open_is_not_started(values):
    with pytest.raises(ClusterError, match="neither tls nor allow_insecure"):
        start(kinds.parse_cluster(values), Needs())


def test_tls_needs_certificates():
    with (
        pytest.raises(ClusterError, match="needs certificates: name them in a cluster file"),
        connect("tls://127.0.0.1:1"),
    ):
        pass


# --- batch systems and Kubernetes, as far as they go without one ----------------------------------------------------


def test_what_a_batch_job_is_told(tmp_path):
    cluster = kinds.parse_cluster(
        {"kind": "slurm", "workers_per_job": 2, "threads": 3, "gpus": 1, "account": "eo", "directives": ["--exclusive"],
         "setup": ["module load gdal"], "environment": {"NOTE": "it's"}, "folder": str(tmp_path)}
    )  # fmt: skip
    options = queue_options(cluster, Needs(memory_bytes=8 * 2**30))
    assert (options["cores"], options["processes"], options["account"]) == (6, 2, "eo")
    assert options["memory"] == f"{20 * 2**30} B"
    assert options["job_extra_directives"] == ["--gres=gpu:2", "--exclusive"]
    assert options["worker_extra_args"][-2:] == ["--resources", "GPU=1"]
    prologue = options["job_script_prologue"]
    assert prologue[0] == "module load gdal"
    assert """export NOTE='it'"'"'s'""" in prologue
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False" in prologue
    assert f"export MALLOC_TOP_PAD_={WORKER_ENVIRONMENT['MALLOC_TOP_PAD_']}" in prologue


@pytest.mark.parametrize("kind", ["pbs", "lsf"])
def test_job_scripts_of_other_batch_systems(kind, tmp_path):
    jobqueue = pytest.importorskip("dask_jobqueue")
    cluster = kinds.parse_cluster(
        {"kind": kind, "queue": "long", "account": "eo", "memory": "10 GiB", "folder": str(tmp_path)}
    )
    options = queue_options(cluster, Needs())
    name = {"pbs": "PBSCluster", "lsf": "LSFCluster"}[kind]
    with getattr(jobqueue, name)(
        protocol="tcp://", **{**options, "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    ) as made:
        script = made.job_script()
    assert "long" in script
    assert "eo" in script
    assert "--memory-limit 10.00GiB" in script
    assert "export OMP_NUM_THREADS=1" in script
    if not any(Path(folder, {"pbs": "qsub", "lsf": "bsub"}[kind]).exists() for folder in os.environ["PATH"].split(":")):
        with pytest.raises(ClusterError, match="start geoflow on a login node"):
            start(cluster, Needs())


def test_what_kubernetes_is_told():
    pytest.importorskip("dask_kubernetes", reason="the Kubernetes operator's package is not installed")
    cluster = kinds.parse_cluster(
        {"kind": "kubernetes", "image": "registry/geoflow:1", "gpus": 1, "secret": "s3-keys", "memory": "8 GiB",
         "workers": {"minimum": 2, "maximum": 50}, "allow_insecure": True}
    )  # fmt: skip
    spec = kubernetes_spec(cluster, Needs())["spec"]
    worker = spec["worker"]["spec"]["containers"][0]
    assert spec["worker"]["replicas"] == 2
    assert worker["image"] == spec["scheduler"]["spec"]["containers"][0]["image"] == "registry/geoflow:1"
    assert worker["resources"]["limits"] == {"cpu": "1", "memory": str(8 * 2**30), "nvidia.com/gpu": "1"}
    assert worker["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
    assert {"name": "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "value": "1"} in worker["env"]
    assert " ".join(worker["args"]).startswith("dask-worker --nthreads 1 --memory-limit 8589934592 --resources GPU=1")


@pytest.mark.parametrize(
    ("module", "extra", "values"),
    [
        ("dask_jobqueue", "slurm", {"kind": "slurm"}),
        ("asyncssh", "ssh", {"kind": "ssh", "hosts": ["a"], "allow_insecure": True}),
        ("dask_gateway", "gateway", {"kind": "gateway"}),
        ("dask_kubernetes.operator", "kubernetes", {"kind": "kubernetes", "image": "i", "allow_insecure": True}),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module, extra, values, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what it cannot import
    with pytest.raises(ClusterError, match=re.escape(f": {how_to_install(extra)} (import of")):
        start(kinds.parse_cluster(values), Needs())


# --- versions -------------------------------------------------------------------------------------------------------


def versions(client: dict, scheduler: dict, **workers: dict) -> dict:
    return {
        "client": {"packages": client},
        "scheduler": {"packages": scheduler},
        "workers": {f"tcp://{name}": {"packages": packages} for name, packages in workers.items()},
    }


def test_versions_that_matter_and_those_that_do_not():
    ours = {
        "python": "3.11.7.final.0",
        "geoflow": "0.1.0",
        "dask": "2026.8.0",
        "numpy": "2.4.6",
        "torch": "2.14.1+cpu",
        "pandas": "3.0",
    }
    theirs = {**ours, "python": "3.11.9.final.0", "numpy": "2.3.0", "torch": "2.14.1+cu130", "pandas": "2.2"}
    found = compare(versions(ours, {**ours, "geoflow": None, "numpy": None}, a=theirs, b=ours))
    assert not any(d.matters for d in found)
    assert {d.package for d in found} == {"python", "numpy", "torch", "pandas"}
    for package, version in {
        "python": "3.12.1.final.0",
        "geoflow": "0.2.0",
        "dask": "2026.8.1",
        "numpy": "1.26.0",
        "torch": "2.13.0",
    }.items():
        (serious,) = [d for d in compare(versions(ours, ours, a=ours, b={**ours, package: version})) if d.matters]
        assert str(serious) == f"{package}: {ours[package]} here, {version} on worker tcp://b"
    (serious,) = compare(versions(ours, {**ours, "dask": "2025.1"}, a=ours))
    assert str(serious) == "dask: 2026.8.0 here, 2025.1 on the scheduler"
    (missing,) = compare(versions(ours, ours, a={**ours, "geoflow": None}))
    assert missing.matters
    assert str(missing) == "geoflow: 0.1.0 here, none on worker tcp://a"


def test_other_code_under_the_same_version_is_noticed(tmp_path):
    copied = tmp_path / "geoflow"
    command = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", command, ROOT / "geoflow", copied], check=True)
    ask = [sys.executable, "-c", "from geoflow.jobs.versions import code_fingerprint; print(code_fingerprint())"]

    def there() -> str:
        altered = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(ask, capture_output=True, text=True, check=True, cwd=tmp_path, env=altered)
        return done.stdout.strip()

    assert there() == code_fingerprint()
    (copied / "errors.py").write_text((copied / "errors.py").read_text() + "\n")
    assert there() != code_fingerprint()
