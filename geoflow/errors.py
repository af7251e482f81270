"""Errors that a user can cause and mend.

Each carries the offending value and what would be accepted. The command line prints the message alone and exits with
``exit_code``; anything that is not a `GeoflowError` is a bug and keeps its traceback.
"""

from geoflow.redact import redact


class GeoflowError(Exception):
    """A condition that the user can mend; the message names the value and the fix."""

    exit_code = 2
    passing = False
    """Whether the same thing may go well a minute later: then a task that met it is tried again."""

    def __init__(self, *args: object) -> None:
        # Messages quote links and the words of other libraries, and go to screens, receipts and reports.
        super().__init__(*(redact(a) if isinstance(a, str) else a for a in args))


class JobError(GeoflowError):
    """A job file that cannot be run as written. The message starts with the key, e.g. ``grid.tile``."""


class GridError(GeoflowError):
    """A grid that cannot be built, or something that does not lie on it."""


class LegendError(GeoflowError):
    """A legend that is inconsistent, or a class that it does not hold."""


class CatalogError(GeoflowError):
    """A catalog that cannot be reached, lacks a band, or answers with nothing."""


class SceneError(GeoflowError):
    """A scene that cannot be read or whose metadata contradict themselves."""

    passing = True


class LabelError(GeoflowError):
    """A label source that is missing, misses the area or holds unknown classes."""


class ModelError(GeoflowError):
    """A model folder that is missing, damaged, or does not fit the data."""


class RankError(GeoflowError):
    """Workers that were to train together and did not meet, or lost one of them."""

    passing = True


class StoreError(GeoflowError):
    """An output store that cannot be created, written, or is not one of ours."""


class ExportError(GeoflowError):
    """An output that cannot be exported as asked: not complete, no such layer, no room, files that are in the way."""


class ClusterError(GeoflowError):
    """A Dask cluster that cannot be started or reached, or that was lost."""


class RunBusy(GeoflowError):
    """An output that another run, which lives, is writing."""


class RunCancelled(GeoflowError):
    """A run that somebody asked to stop."""

    exit_code = 130


class RunFailed(GeoflowError):
    """A run that ended with tasks that failed; the summary names them."""

    exit_code = 1
