"""The same job on real clusters: a scheduler with two workers over TLS, SLURM, and machines behind ssh."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm.node import CannotStart, slurm_node

import geoflow as gf
from geoflow.errors import ClusterError
from geoflow.jobs.clusters import connect

LEFT_OUT = ("labels", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")


def chunks(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("country.zarr/**/c/**/*")) if p.is_file()}


@pytest.fixture(scope="module")
def sample(tiny_job: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """(job file, chunks of its store) of composites of the tiny country, made in this process."""
    job, out = tiny_job(*LEFT_OUT), tmp_path_factory.mktemp("here") / "out"
    values = yaml.safe_load(job.read_text())
    values["imagery"]["epochs"] = {"2018": {"summer": "2018-06-16/2018-09-30"}}
    job.write_text(yaml.safe_dump(values))
    assert gf.run(gf.load_job(job), out, cluster="threads", limit=2)["status"] == "complete"
    return job, chunks(out)


def geoflow_run(
    job: Path, out: Path, cluster: str, limit: int | None = 2, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``geoflow run`` as a user types it."""
    command = [sys.executable, "-m", "geoflow", "run", str(job), "--out", str(out), "--cluster", cluster]
    command += [] if limit is None else ["--limit", str(limit)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def cluster_file(beside: Path, **values: Any) -> str:
    path = beside / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


# --- TLS ------------------------------------------------------------------------------------------------------------


def make_certificates(folder: Path) -> dict[str, str]:
    """An authority, and a certificate of it, as PEM files: what docs/how-to/clusters.md makes with openssl."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    now = dt.datetime.now(dt.UTC)

    def signed(name: str, key: Any, issuer: Any, by: Any, authority: bool) -> Any:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(minutes=5)).not_valid_after(now + dt.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        return builder.sign(by, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = signed("geoflow test authority", ca_key, None, ca_key, True)
    cert = signed("geoflow test", key, ca.subject, ca_key, False)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "cert.pem").write_bytes(cert.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}


@contextlib.contextmanager
def dask_cluster(folder: Path, tls: dict[str, str], *options: str, **environment: str) -> Iterator[str]:
    """The address of a real ``dask scheduler`` with two ``dask worker`` processes."""
    certificates = [f"--tls-{'ca-file' if n == 'ca' else n}={path}" for n, path in tls.items()]
    file, program = folder / "scheduler.json", [sys.executable, "-m", "dask"]
    with contextlib.ExitStack() as stack:

        def begin(*command: str) -> None:
            log = stack.enter_context(open(folder / f"{command[0]}.log", "ab"))
            env = {**os.environ, **environment}
            process = subprocess.Popen([*program, *command], stdout=log, stderr=log, env=env)
            stack.callback(lambda: (process.terminate(), process.wait(30)))

        here = "--host=127.0.0.1"
        begin("scheduler", here, "--port=0", "--dashboard-address=127.0.0.1:0", f"--scheduler-file={file}",
              f"--protocol={'tls' if tls else 'tcp'}", *certificates)  # fmt: skip
        for _ in range(2):
            begin("worker", here, f"--scheduler-file={file}", "--nthreads=1", "--dashboard-address=127.0.0.1:0",
                  f"--local-directory={folder}", *certificates, *options)  # fmt: skip
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline, (folder / "scheduler.log").read_text()
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"]


def test_a_job_over_tls(sample, tmp_path):
    job, wanted = sample
    tls = make_certificates(tmp_path / "tls")
    with dask_cluster(tmp_path, tls) as address:
        assert address.startswith("tls://127.0.0.1:")
        file = cluster_file(tmp_path, kind="scheduler", address=address, tls=tls)
        done = geoflow_run(job, tmp_path / "out", file)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Dask: 2 workers" in done.stdout or "Dask: 1 worker" in done.stdout
        assert chunks(tmp_path / "out") == wanted

        # The same certificates from Dask's own configuration, as clusters that are set up for Dask have them.
        configured = {"CA_FILE": tls["ca"], "CLIENT__CERT": tls["cert"], "CLIENT__KEY": tls["key"]}
        variables = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": path for name, path in configured.items()}
        ask = "from geoflow.jobs.clusters import connect\nwith connect() as c: print(c.submit(sum, [1, 2]).result())"
        variables["DASK_SCHEDULER_ADDRESS"] = address
        done = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, env={**os.environ, **variables}
        )
        assert done.stdout.split() == ["3"], done.stderr

        # Nobody without a certificate of this authority gets in, and it is said why.
        other = make_certificates(tmp_path / "other")
        file = cluster_file(tmp_path, kind="scheduler", address=address, tls=other)
        with pytest.raises(ClusterError, match="no scheduler answers there"), connect(file):
            pass


@pytest.mark.slow
def test_the_whole_job_over_tls(finished, tmp_path):
    """Trainings, maps and change too, with the same bytes as on the workers of one machine."""
    tls = make_certificates(tmp_path / "tls")
    with dask_cluster(tmp_path, tls) as address:
        file = cluster_file(tmp_path, kind="scheduler", address=address, tls=tls)
        done = geoflow_run(finished[0], tmp_path / "out", file, limit=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert chunks(tmp_path / "out") == chunks(finished[1])


@pytest.mark.slow
def test_workers_with_other_packages_are_refused(tmp_path):
    """Two real workers in a Python that reports another numpy, and one package that is not there."""
    (tmp_path / "shadow").mkdir()
    for name, version in (("numpy", "1.26.4"), ("shapely", "1.8.0")):
        info = tmp_path / "shadow" / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = os.pathsep.join([str(tmp_path / "shadow"), os.environ.get("PYTHONPATH", "")])
    said: list[str] = []
    with (
        dask_cluster(tmp_path, {}, PYTHONPATH=path) as address,
        pytest.raises(
            ClusterError, match=r"numpy: 2\S* here, 1.26.4 on the worker|numpy: 2\S* here, 1.26.4 on worker tcp"
        ),
        connect(address, say=said.append),
    ):
        pass
    assert not said


# --- SLURM ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a SLURM of one node, see tests/slurm/node.py."""
    with contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm_node(tmp_path_factory.mktemp("slurm")))
        except CannotStart as reason:
            pytest.skip(f"no SLURM here: {reason}")
        yield environment


def in_slurm(folder: Path, **values: Any) -> str:
    few = {"threads": 1, "memory": "1500 MiB", "walltime": "00:10:00", "queue": "test", "start_timeout_s": 120}
    return cluster_file(folder, kind="slurm", host="127.0.0.1", folder=str(folder / "logs"), **{**few, **values})


def test_a_job_on_slurm(slurm, sample, tmp_path):
    job, wanted = sample
    file = in_slurm(tmp_path, workers={"minimum": 1, "maximum": 2}, setup=["export FROM_SETUP=yes"])
    done = geoflow_run(job, tmp_path / "out", file, **slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert chunks(tmp_path / "out") == wanted
    lines = [line for log in (tmp_path / "logs").glob("geoflow-worker-*.err") for line in log.read_text().splitlines()]
    heard = [line for line in lines if "Start worker at" in line]  # a worker that is not needed may end before
    assert heard
    assert all("tls://" in line for line in heard), "batch jobs speak TLS without being told"
    assert not any("tcp://" in line for line in lines)
    left = subprocess.run(
        ["squeue", "--noheader"], capture_output=True, text=True, env={**os.environ, **slurm}, check=True
    )
    assert not [line for line in left.stdout.splitlines() if " CG " not in line], "jobs are left behind"
    assert not list((tmp_path / "logs").glob(".dask-jobqueue*")), "certificates are left behind"


@pytest.mark.slow
def test_the_whole_job_on_slurm(slurm, finished, tmp_path):
    """Trainings, maps and change too, with the same bytes as on the workers of one machine."""
    file = in_slurm(tmp_path, workers=2, memory="4 GiB", walltime="01:00:00")
    done = geoflow_run(finished[0], tmp_path / "out", file, limit=None, **slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert chunks(tmp_path / "out") == chunks(finished[1])


@pytest.mark.slow
def test_a_worker_that_slurm_ends_is_asked_for_again(slurm, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    with connect(in_slurm(tmp_path, workers=1)) as client:
        (first,) = client.scheduler_info()["workers"]
        subprocess.run(["scancel", "--partition=test"], check=True)
        deadline = time.monotonic() + 120
        while set(client.scheduler_info()["workers"]) <= {first}:
            assert time.monotonic() < deadline, "no worker took its place"
            time.sleep(0.5)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


# A run that is driven by SLURM: asked after from shells that have nothing to do with it.


@pytest.fixture
def shell(slurm, tmp_path) -> Callable[..., Any]:
    """Runs a command of geoflow in a process of its own on the login node; what it told as JSON."""
    environment = {**os.environ, **slurm, "XDG_STATE_HOME": str(tmp_path / "state")}

    def call(*arguments: object) -> Any:
        command = [sys.executable, "-m", "geoflow", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return call


def ask_slurm(slurm: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **slurm}, check=True)
    return done.stdout.strip()


def until(wanted: Callable[[], bool], told: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, told()
        time.sleep(0.5)


def test_slurm_drives_what_was_submitted(slurm, shell, sample, tmp_path):
    """Withdrawn while it waits in the queue, resumed, and complete."""
    job, wanted = sample
    out, file = tmp_path / "out", in_slurm(tmp_path)
    other = ask_slurm(slurm, "sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 300")
    until(lambda: ask_slurm(slurm, "squeue", "--noheader", "--format=%T", "--jobs", other) == "RUNNING", lambda: other)
    begun = shell("submit", job, "--out", out, "--limit", 2, "--cluster", file)
    assert shell("status", out)["state"] == "submitted"
    assert shell("cancel", begun["id"])["state"] == "cancelled"
    queue = ask_slurm(slurm, "squeue", "--noheader", "--format=%j")
    assert begun["id"] not in queue
    ask_slurm(slurm, "scancel", other)

    again = shell("resume", begun["id"])["id"]
    log = out / "runs" / again / "log.txt"
    until(lambda: shell("status", again)["state"] == "complete", lambda: log.read_text(), 180)
    assert shell("status", again)["driver"] == "slurm"
    assert "Composites" in log.read_text()
    assert chunks(out) == wanted


def test_a_run_that_slurm_lost_before_it_began_says_so(slurm, shell, sample, tmp_path):
    out = tmp_path / "out"
    file = in_slurm(tmp_path, setup=["exit 3"])  # a module that cannot be loaded
    shell("submit", sample[0], "--out", out, "--limit", 2, "--cluster", file)
    until(lambda: shell("status", out)["state"] == "lost", lambda: shell("status", out), 60)


@pytest.mark.slow
def test_a_driver_goes_on_after_its_walltime(slurm, shell, sample, tmp_path):
    """With the signal that SLURM sends then; once while it is at work, and once it is asked to stop."""
    job, wanted = sample
    out, file = tmp_path / "out", in_slurm(tmp_path)
    run = shell("submit", job, "--out", out, "--limit", 2, "--cluster", file)["id"]
    record, log = out / "runs" / run, out / "runs" / run / "log.txt"
    number = (record / "slurm-job").read_text()

    def state() -> str:
        return ask_slurm(slurm, "squeue", "--noheader", "--format=%T", "--jobs", number)

    until(lambda: "imagery" in json.loads((record / "run.json").read_text())["stages"], log.read_text)
    ask_slurm(slurm, "scancel", "--batch", "--signal=USR1", number)
    until(lambda: state() == "PENDING", log.read_text)
    told = shell("status", run)
    assert told["state"] == "submitted"
    assert any("walltime" in line for line in told["news"])
    assert not (out / "lease.json").exists()
    # SLURM lets a job that was requeued wait for two minutes.
    ask_slurm(slurm, "scontrol", "update", f"JobId={number}", "StartTime=now")
    until(lambda: shell("status", run)["state"] == "complete", log.read_text, 240)
    _, bar, after = log.read_text().partition("Interrupted")
    assert bar, "the first driver's words are kept"
    assert "Composites" in after, "the second's are below them"
    assert chunks(out) == wanted


def test_what_slurm_refuses_is_said_at_once(slurm, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    nights = in_slurm(tmp_path, queue="nights")
    with pytest.raises(ClusterError, match=r"kind slurm: no worker could be asked for: .*nights"), connect(nights):
        pass
    late = in_slurm(tmp_path, setup=["sleep 60"], start_timeout_s=3)
    with pytest.raises(ClusterError, match=r"no worker came within 3 s .*squeue --me"), connect(late):
        pass
    assert time.monotonic() - start < 60


# --- ssh ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ssh_server(home: Path) -> Iterator[int]:
    """The port of an ssh server on loopback that runs commands as this user, who may enter with the key in ``home``."""
    import asyncssh

    folder = home / ".ssh"
    folder.mkdir(mode=0o700)
    host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user_key.write_private_key(folder / "id_ed25519")
    public = folder / "authorized_keys"
    user_key.write_public_key(public)
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    ports: list[int] = []

    async def run_command(process: Any) -> None:
        shell = await asyncio.create_subprocess_shell(
            process.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        await process.redirect(stdout=shell.stdout, stderr=shell.stderr, send_eof=False)
        try:
            process.exit(await shell.wait())
        except asyncio.CancelledError:
            os.killpg(shell.pid, 15)

    async def serve() -> None:
        options: dict[str, Any] = {"server_host_keys": [host_key], "authorized_client_keys": str(public)}
        async with asyncssh.listen("127.0.0.1", 0, process_factory=run_command, **options) as server:
            ports.append(server.get_port())
            key = host_key.export_public_key().decode().strip()
            (folder / "known_hosts").write_text(f"[127.0.0.1]:{ports[0]} {key}\n")
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


@pytest.mark.slow
def test_workers_behind_ssh_speak_tls(tmp_path, monkeypatch):
    tls = make_certificates(tmp_path / "tls")
    monkeypatch.setenv("HOME", str(tmp_path))
    with ssh_server(tmp_path) as port:
        file = cluster_file(
            tmp_path, kind="ssh", hosts=["127.0.0.1"], port=port, tls=tls, memory="2 GiB", workers_per_host=2,
            environment={"FROM_THE_FILE": "yes"},
        )  # fmt: skip
        with connect(file) as client:
            client.wait_for_workers(2, timeout=60)
            found = client.run(lambda: (os.environ["FROM_THE_FILE"], os.environ["MALLOC_TOP_PAD_"]))
            assert len(found) == 2
            assert all(address.startswith("tls://") for address in found)
            assert set(found.values()) == {("yes", "268435456")}
            assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 1
