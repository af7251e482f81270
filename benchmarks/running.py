"""What the runner adds to the work: tasks that do nothing, through the whole way from plan to receipt.

    python benchmarks/running.py [--size small|tile|country] [--only NAME,NAME] [--json FILE]

floor     the same tasks one after the other in this process: work and receipt, no cluster
ours      geoflow.jobs.runner.run_tasks on a local cluster of two processes: a sliding window of futures, a receipt each
usual     client.map of all tasks at once and a gather, as users write it

Memory is that of this process, which holds the client and the scheduler; ``mb_after_first_tenth`` is how much it grew
after the first tenth of the tasks. Mpx/s count tiles of 512 x 512 px.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distributed import Client, LocalCluster
from measuring import chosen_of, command_line, measure, report, resident_mb

from geoflow.jobs.outcome import Outcome
from geoflow.jobs.patience import Watch
from geoflow.jobs.runner import run_tasks
from geoflow.jobs.tasks import Done, Task, perform
from geoflow.store.receipts import digest

SIZES = {"small": (500, 2), "tile": (20_000, 1), "country": (100_000, 1)}  # tasks, repeats
TILE_PX = 512 * 512


@dataclass(frozen=True)
class Nothing:
    """Work that does nothing."""

    def __call__(self) -> Done:
        """Nothing."""
        return Done()


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES, choice=True)
    count, repeats = SIZES[arguments.size]

    def tasks() -> Iterator[Task]:
        return (Task("bench", f"t{n:06d}", digest("bench", n), Nothing()) for n in range(count))

    grown_mb: list[float] = []
    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        folder = Path(name)

        def ours() -> None:
            outcome, marks = Outcome(), []

            def on_done(task: Task) -> None:
                if outcome.done in (count // 10, count):
                    marks.append(resident_mb())

            run_tasks(client, tasks(), folder, outcome, Watch(on_done))
            grown_mb.append(marks[-1] - marks[0])
            if outcome.done != count:
                raise SystemExit(f"{count - outcome.done} tasks did not end well: {outcome.failed[:1]}")

        variants = {
            "floor": lambda: [perform(task, folder) for task in tasks()],
            "ours": ours,
            "usual": lambda: client.gather(client.map(perform, list(tasks()), folder=folder, pure=False)),
        }
        chosen = chosen_of(variants, arguments.only)
        rows = [measure(name, run, count * TILE_PX, repeats) for name, run in chosen.items()]
    seconds = {row.name: row.seconds for row in rows}
    ratios = {}
    if "ours" in seconds:
        ratios |= {"ms_per_task": 1e3 * seconds["ours"] / count, "mb_after_first_tenth": grown_mb[-1]}
    if {"ours", "floor"} <= seconds.keys():
        ratios["time_over_floor"] = seconds["ours"] / seconds["floor"]
    if {"ours", "usual"} <= seconds.keys():
        ratios["speed_over_usual"] = seconds["usual"] / seconds["ours"]
    report(f"{count} tasks that do nothing, 2 workers, median of {repeats}", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
