"""What the benchmarks share: their command line, the clock, the memory gauge, the table and the JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


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
            with PeakMemory() as memory:
                start = time.perf_counter()
                run()
                took = time.perf_counter() - start
            if turn:
                seconds[name].append(took)
                peaks[name].append(memory.peak_mb)
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
