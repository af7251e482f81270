"""The threads that nets run in: every window on one thread, as many windows at once as the worker has threads.

How a library splits a sum over threads depends on how many there are, and with the order of a sum change its last bits:
a ResNet50 gives other bits on one thread than on two, and others again on 24 (measured, oneDNN). On one thread a window
means the same on every worker. It is the faster way too, since no thread waits for another at the end of every layer:
1.3 times with torch and bf16, up to 1.7 times with OpenVINO (measured on two cores).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

GPU_THREADS = 3
"""With a GPU, one window runs on it while the next is encoded and the one before is made into probabilities."""


def worker_threads() -> int:
    """Threads of the Dask worker that this process is, else the cores that it may use.

    The worker is looked up by process, not by `distributed.get_worker`: inside a worker's task, chunks are computed in
    threads of a pool of their own, which do not know the worker.
    """
    module = sys.modules.get("distributed.worker")
    # Workers of clusters that were closed stay in the list until their memory is collected.
    workers = [w for w in module.Worker._instances if w.status.name == "running"] if module is not None else []
    if workers:
        return max(1, sum(int(worker.state.nthreads) for worker in workers))
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def net_pool(gpu: bool) -> ThreadPoolExecutor:
    """The pool of this process, which all its tasks share; torch uses one thread in each of its threads."""
    threads = worker_threads()
    return _pool(max(threads, GPU_THREADS) if gpu else threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="net", initializer=_one_thread)


def _one_thread() -> None:
    """Keep torch to the thread that calls this.

    `torch.set_num_threads` would do so, and set what other threads of the process start with: a user's own training.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # torch sets up its threads in a thread when that is first asked
    threadpool_limits(1, user_api="openmp")
