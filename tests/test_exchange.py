"""One file that many processes change at once: on a disk, on S3, and on a server that knows no conditional requests."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any

import pytest
from s3_server import s3_bucket

from geoflow.errors import RunBusy
from geoflow.exchange import exchange
from geoflow.jobs.lease import NAME, Holder, Lease, holder_of
from geoflow.places import place, read_bytes, write_bytes

PROCESSES, TIMES = 4, 15


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as name:
        yield name


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "disk":
        return tmp_path
    return place(f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}")


def together(code: str, *arguments: str) -> list[int]:
    """The same Python in several processes, whose imports are done before all go on at once; how each of them ended."""
    imports, _, rest = code.partition("---\n")
    whole = f"import sys\n{imports}print('ready', flush=True)\nsys.stdin.readline()\n{rest}"
    piped: dict[str, Any] = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", whole, *arguments]
    running = [subprocess.Popen([*command, str(n)], **piped) for n in range(PROCESSES)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    return [process.returncode for process in running]


def test_no_change_is_lost(folder):
    code = (
        "from geoflow.exchange import exchange; from geoflow.places import place\n"
        "---\n"
        "path = place(sys.argv[1])\n"
        f"for n in range({TIMES}): exchange(path, lambda found: str(int(found or 0) + 1).encode())\n"
    )
    assert together(code, str(folder / "count.json")) == [0] * PROCESSES
    assert int(read_bytes(folder / "count.json")) == PROCESSES * TIMES


def test_of_many_runs_one_gets_a_lease_that_was_left(folder):
    left = replace(Holder.me("dead"), host="elsewhere", renewed=0.0)
    write_bytes(folder / NAME, dumps(asdict(left)).encode())
    code = (
        "import time; from geoflow.errors import RunBusy; from geoflow.jobs.lease import Lease\n"
        "from geoflow.places import place\n"
        "---\n"
        "try: Lease(place(sys.argv[1]), f'r{sys.argv[2]}').acquire()\n"
        "except RunBusy: sys.exit(3)\n"
        "time.sleep(3)\n"
    )
    assert sorted(together(code, str(folder))) == [0, *[3] * (PROCESSES - 1)]


def test_a_lease_is_given_back_and_only_by_its_holder(folder):
    with Lease(folder, "one"):
        with pytest.raises(RunBusy, match="run one"):
            Lease(folder, "two").acquire()
        taker = replace(Holder.me("taker"), host="elsewhere")
        write_bytes(folder / NAME, dumps(asdict(taker)).encode())
    assert holder_of(folder) == taker
    exchange(folder / NAME, lambda found: None)
    assert holder_of(folder) is None
    with Lease(folder, "three"):
        pass
    assert holder_of(folder) is None


def test_what_a_change_raises_changes_nothing(folder):
    write_bytes(folder / "file.json", b"kept")

    def refuse(found: bytes | None) -> bytes:
        assert found == b"kept"
        raise RunBusy("no")

    with pytest.raises(RunBusy):
        exchange(folder / "file.json", refuse)
    assert read_bytes(folder / "file.json") == b"kept"


def test_somebody_who_is_faster_is_noticed(bucket):
    """Between reading and writing: the change is made anew, of what is there then."""
    path, seen = place(f"s3://{bucket}/raced.json"), []

    def change(found: bytes | None) -> bytes:
        seen.append(found)
        if len(seen) == 1:
            write_bytes(path, b"theirs")
        return b"mine after " + (found or b"nothing")

    exchange(path, change)
    assert seen == [None, b"theirs"]
    assert read_bytes(path) == b"mine after theirs"


@contextmanager
def server_without_conditions() -> Iterator[str]:
    """The address of moto's S3 that does not implement requests with a condition, as some older stores do not."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Any) -> Any:
        if "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ:
            start("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NotImplemented</Code><Message>no conditions</Message></Error>"]
        return moto(environ, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def test_a_server_without_conditional_requests(bucket, monkeypatch):
    import s3fs

    with server_without_conditions() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("old")
        folder = place("s3://old/output")
        with Lease(folder, "one"), pytest.raises(RunBusy, match="run one"):
            Lease(folder, "two").acquire()
        assert holder_of(folder) is None
    s3fs.S3FileSystem.clear_instance_cache()
