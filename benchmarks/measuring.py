"""What the benchmarks share: their command line, the clock, the memory gauge, the table and the JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def with_environment(variables: Mapping[str, str]) -> None:
    """Start this program again with some environment variables, which the C library reads at its start."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})


@dataclass(frozen=True)
class Row:
    """What one variant took: median seconds, throughput in million pixels a second, and memory above the start."""

    name: str
    seconds: float
    mpx_per_s: float
    peak_mb: float


def command_line(doc: str | None, sizes: Iterable[str], choice: bool = False) -> argparse.Namespace:
    """``size``, ``json`` and, where there is a ``choice`` of variants, ``only`` from the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(sizes), default="small")
    parser.add_argument("--json", type=Path)
    if choice:
        parser.add_argument("--only", metavar="NAME,NAME", help="measure these variants alone")
    return parser.parse_args()


def chosen_of(variants: Mapping[str, Callable[[], object]], only: str | None) -> dict[str, Callable[[], object]]:
    """The variants that ``--only`` names, or all of them."""
    names = list(variants) if only is None else only.split(",")
    if unknown := [name for name in names if name not in variants]:
        raise SystemExit(f"--only {unknown[0]}: there is no such variant; there are {', '.join(variants)}")
    return {name: variants[name] for name in names}


def measure(name: str, run: Callable[[], object], pixels: float, repeats: int) -> Row:
    """Median of some runs after a first one that is not timed."""
    run()
    seconds, peaks = [], []
    for _ in range(repeats):
        with PeakMemory() as memory:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        peaks.append(memory.peak_mb)
    middle = statistics.median(seconds)
    return Row(name, middle, pixels / 1e6 / middle, statistics.median(peaks))


@dataclass(frozen=True)
class Timed:
    """What one run of something took."""

    seconds: float
    peak_mb: float


def timed(run: Callable[[], object]) -> Timed:
    """Run and measure here, unless the run measured itself in another process and gives that."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        found = run()
        took = time.perf_counter() - start
    return found if isinstance(found, Timed) else Timed(took, memory.peak_mb)


class OtherProcess:
    """A process with another environment, in which some variants run and are measured.

    Parameters
    ----------
    make : callable
        Of the top level of a module; gives the variants by name, in that process.
    arguments : tuple
        What it takes.
    without : iterable of str
        Environment variables that the process does not get: the C library reads some when it starts.
    """

    def __init__(
        self,
        make: Callable[..., Mapping[str, Callable[[], object]]],
        arguments: tuple[Any, ...],
        without: Iterable[str],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)
        taken = {name: os.environ.pop(name) for name in without if name in os.environ}
        try:
            process.start()
        finally:
            os.environ.update(taken)

    def run(self, name: str) -> Timed:
        """Run a variant there."""
        self._here.send(name)
        found: Timed = self._here.recv()
        return found


def _serve(asked: Any, make: Callable[..., Mapping[str, Callable[[], object]]], arguments: tuple[Any, ...]) -> None:
    variants = make(*arguments)
    with suppress(EOFError):  # the other end is gone: all is measured
        while True:
            asked.send(timed(variants[asked.recv()]))


def measure_alternately(
    variants: Mapping[str, Callable[[], object]], pixels: float, rounds: int
) -> tuple[list[Row], dict[str, list[float]]]:
    """Medians of some rounds in which all variants run, one after the other, and the seconds of every round.

    What else goes on in a machine then meets all of them alike, so that ratios within a round move less than seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):  # the first is not counted
        for name, run in variants.items():
            took = timed(run)
            if turn:
                seconds[name].append(took.seconds)
                peaks[name].append(took.peak_mb)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [Row(name, middle[name], pixels / 1e6 / middle[name], statistics.median(peaks[name])) for name in variants]
    return rows, seconds


def ratio_of(seconds: Mapping[str, list[float]], over: str, under: str) -> tuple[float, float, float]:
    """(median, least, most) over the rounds of one variant's time over another's."""
    found = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return statistics.median(found), min(found), max(found)


def report(title: str, rows: list[Row], ratios: Mapping[str, float], path: Path | None) -> None:
    """Print the table; write it as JSON too if asked."""
    print(title)
    for row in rows:
        print(f"{row.name:>10}  {row.seconds:9.3f} s  {row.mpx_per_s:9.2f} Mpx/s  {row.peak_mb:8.0f} MB")
    for name, value in ratios.items():
        print(f"{name:>24}  {value:.2f}")
    if path:
        path.write_text(json.dumps({"rows": [asdict(row) for row in rows], "ratios": dict(ratios)}, indent=1))


class PeakMemory:
    """Highest resident memory above the start, sampled every 10 ms."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):  # else what an earlier run left would hide what this one needs
            ctypes.CDLL(None).malloc_trim(0)
        self._base = self._peak = resident_mb()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        """Megabytes above what was resident at the start."""
        return self._peak - self._base

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._peak = max(self._peak, resident_mb())


def resident_mb() -> float:
    """Resident memory of this process, from Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
