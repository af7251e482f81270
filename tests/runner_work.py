"""Work that misbehaves, for tests of the runner; workers import it."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from geoflow.errors import JobError, SceneError
from geoflow.jobs.tasks import Done


@dataclass(frozen=True)
class Note:
    """Leaves a line in a file each time it is done, then does what it is told, then leaves its own file."""

    folder: Path
    name: str
    how: str = "well"
    times: int = 0
    seconds: float = 0.0

    def __call__(self) -> Done:
        """See the class; after ``times`` times all goes well."""
        tries = self.folder / f"{self.name}.tries"
        with tries.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        if len(tries.read_text().splitlines()) <= self.times:
            self._misbehave()
        made = self.folder / f"{self.name}.made"
        made.write_text("made")
        return Done({"made": 1}, (made,))

    def _misbehave(self) -> None:
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "eat":
            eaten = []
            while True:
                eaten.append(b"x" * 2**24)
                time.sleep(0.02)
        elif self.how == "hang":
            time.sleep(3600)
        elif self.how == "scene":
            raise SceneError("the scene cannot be read")
        elif self.how == "job":
            raise JobError("grid.tile: is wrong")
        elif self.how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        elif self.how == "bug":
            raise KeyError("a bug")
        else:
            raise ValueError(self.how)
