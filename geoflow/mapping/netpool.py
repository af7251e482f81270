"""The threads that nets run in: every window on one thread, as many windows at once as the worker has threads.

How a library splits a sum over threads depends on how many there are, and with the order of a sum change its last bits:
a ResNet50 gives other bits on one thread than on two, and others again on 24 (measured, oneDNN). On one thread a window
means the same on every worker. It is the faster way too, since no thread waits for another at the end of every layer:
1.3 times with torch and bf16, up to 1.7 times with OpenVINO (measured on two cores).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

GPU_THREADS = 3
"""With a GPU, one window runs on it while the next is encoded and the one before is made into probabilities."""


_ALIVE = ("running", "paused", "closing_gracefully")
"""States of a worker whose tasks go on; one that is paused, for want of memory, least of all needs more threads."""

_LOCK = threading.Lock()
_blocks = 0


def worker_threads() -> int:
    """Threads of the Dask worker that this process is, else the cores that it may use.

    The worker is looked up by process, not by `distributed.get_worker`: inside a worker's task, chunks are computed in
    threads of a pool of their own, which do not know the worker.
    """
    module = sys.modules.get("distributed.worker")
    # Workers of clusters that were closed stay in the list until their memory is collected.
    workers = [w for w in module.Worker._instances if w.status.name in _ALIVE] if module is not None else []
    if workers:
        return max(1, sum(int(worker.state.nthreads) for worker in workers))
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def net_pool(gpu: bool) -> ThreadPoolExecutor:
    """The pool of this process, which all its tasks share; torch uses one thread in each of its threads."""
    threads = worker_threads()
    with _LOCK:  # else two tasks that start together might make a pool each
        return _pool(max(threads, GPU_THREADS) if gpu else threads)


@contextlib.contextmanager
def windows_ahead() -> Iterator[Callable[[], int]]:
    """How many windows a block may have asked for before it settles one, for as long as the block is being mapped.

    All blocks of the process share its threads: if each asked for as many windows as there are threads, what they hold
    would grow with the square of the threads.
    """
    global _blocks
    with _LOCK:
        _blocks += 1
    try:
        yield lambda: -(-worker_threads() // _blocks) + 1
    finally:
        with _LOCK:
            _blocks -= 1


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
