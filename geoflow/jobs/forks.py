"""Worker processes of this machine are forked from one that has imported what they need.

Imports take three seconds of a core where images are read, and nine where nets run. A worker that is started anew, by
Dask or after it was lost, would pay them each time, and all workers of a machine would at its beginning.
"""

from __future__ import annotations

import multiprocessing
import os

METHOD = "distributed.worker.multiprocessing-method"

_IMAGERY = ("distributed", "geoflow.jobs.imagerywork", "geoflow.imagery.composite", "geoflow.imagery.load", "odc.stac")
_NETS = ("torch", "segmentation_models_pytorch", "geoflow.learning.segmenter", "geoflow.mapping.netpool")

_names_then: frozenset[str] | None = None


def fork_method(nets: bool) -> str:
    """How Dask shall start worker processes: its own way, or ``forkserver``, made ready here.

    Parameters
    ----------
    nets : bool
        Whether the workers run nets. What was imported for the first cluster of this process stays so for later ones.

    Returns
    -------
    str
        A value of `METHOD`.
    """
    import dask
    from distributed.utils import get_mp_context

    global _names_then
    # Forked processes have the variables of the first time and what they are given now, but cannot lose one: with the
    # credentials of a profile that was taken away since they would be somebody else.
    if "forkserver" not in multiprocessing.get_all_start_methods() or (
        _names_then is not None and not _names_then <= os.environ.keys()
    ):
        return "spawn"
    if _names_then is None:
        _names_then = frozenset(os.environ)
        with dask.config.set({METHOD: "forkserver"}):
            context = get_mp_context()  # Dask's own list is set when it is first asked
        # Of a name that cannot be imported nothing is said here; the task that needs it will.
        context.set_forkserver_preload([*_IMAGERY, *(_NETS if nets else ())])
    return "forkserver"
