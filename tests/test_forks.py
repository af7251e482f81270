"""Worker processes of this machine: forked ready-made, with the environment of now."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

SCRIPT = """
import json, os, sys
from geoflow.jobs.clusters import Needs, connect

def look():
    names = ("FIRST", "SECOND", "OMP_NUM_THREADS", "MALLOC_TOP_PAD_")
    return {"torch": "torch" in sys.modules, **{name: os.environ.get(name) for name in names}}

def workers():
    with connect("local", Needs(nets=True)) as client:
        client.wait_for_workers(1)
        return next(iter(client.run(look).values()))

if __name__ == "__main__":
    os.environ["FIRST"] = "was here"
    told = [workers()]
    os.environ["SECOND"] = "new"
    told.append(workers())
    del os.environ["FIRST"]
    told.append(workers())
    print(json.dumps(told))
"""


def test_workers_have_imported_what_they_need_and_the_environment_of_now(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    ours = {"OMP_NUM_THREADS": "1", "MALLOC_TOP_PAD_": "268435456"}
    assert json.loads(done.stdout) == [
        {"torch": True, "FIRST": "was here", "SECOND": None, **ours},
        {"torch": True, "FIRST": "was here", "SECOND": "new", **ours},
        # A variable that was taken away cannot be taken from a process that was forked: these begin from nothing.
        {"torch": False, "FIRST": None, "SECOND": "new", **ours},
    ]


@pytest.mark.parametrize("number", [9, 2], ids=["SIGKILL", "SIGINT"])
def test_nothing_is_left_of_a_cluster_whose_owner_ends(number):
    code = (
        "import time\nfrom geoflow.jobs.clusters import connect\n"
        "if __name__ == '__main__':\n with connect('local') as client:\n"
        "  client.wait_for_workers(1); print('up', flush=True); time.sleep(600)\n"
    )
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **quiet) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, number)
        process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
