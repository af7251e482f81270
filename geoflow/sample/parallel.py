"""A small pool of threads: numpy, scipy and GDAL release the interpreter lock where the time goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def default_workers() -> int:
    """Threads to use: the processors of this process, at most eight."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, available))


def run_all(tasks: Sequence[Callable[[], T]], workers: int, done: Callable[[], None] | None = None) -> list[T]:
    """Run tasks and return their results in order; the first failure is raised and the tasks not yet begun are
    dropped."""
    results: list[T] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in futures:
                results.append(future.result())
                if done is not None:
                    done()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results
