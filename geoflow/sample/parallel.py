"""A small pool of threads: numpy, scipy and GDAL release the interpreter lock where the time goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""


@dataclass(frozen=True)
class Workshop:
    """Where and how the work is done: a folder for drafts, a number of threads, and whom to tell."""

    drafts: Path
    workers: int
    progress: Progress


def default_workers() -> int:
    """Threads to use: the processors of this process, at most eight."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, available))


def run_all(
    work: Callable[..., T], arguments: Iterable[tuple[Any, ...]], workers: int, done: Callable[[], None] | None = None
) -> list[T]:
    """Call ``work`` with each tuple of arguments; the results come in that order.

    The first failure is raised and the calls not yet begun are dropped.
    """
    results: list[T] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(work, *one) for one in arguments]
        try:
            for future in futures:
                results.append(future.result())
                if done is not None:
                    done()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results
