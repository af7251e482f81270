"""geoflow: country-scale land cover and change maps from Sentinel-2 and CORINE, on Dask, xarray, Zarr and PyTorch.

    import geoflow as gf

    country = gf.open("out/quickstart/country.zarr")
    country["map/2018/level1"]

The names below are loaded on first use, so that ``import geoflow`` and ``geoflow --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> (module, name in that module)
_PUBLIC = {
    "CompositeOptions": ("geoflow.imagery", "CompositeOptions"),
    "ExportChoice": ("geoflow.exports.layers", "ExportChoice"),
    "GeoflowError": ("geoflow.errors", "GeoflowError"),
    "Grid": ("geoflow.grid", "Grid"),
    "HeldOut": ("geoflow.learning.samples", "HeldOut"),
    "InputSpec": ("geoflow.inputs", "InputSpec"),
    "Legend": ("geoflow.legends", "Legend"),
    "MapOptions": ("geoflow.mapping.predict", "MapOptions"),
    "Period": ("geoflow.imagery", "Period"),
    "SegmenterOptions": ("geoflow.learning.options", "SegmenterOptions"),
    "TransitionMatrix": ("geoflow.mapping.series", "TransitionMatrix"),
    "areas": ("geoflow.mapping.areas", "areas"),
    "change_patches": ("geoflow.mapping.changepatches", "change_patches"),
    "composite_tile": ("geoflow.imagery", "composite_tile"),
    "ensemble": ("geoflow.ensembles", "ensemble"),
    "export": ("geoflow.exports.export", "export"),
    "fit_segmenter": ("geoflow.learning.segmenter", "fit_segmenter"),
    "generalise": ("geoflow.mapping.generalise", "generalise"),
    "legend": ("geoflow.legends", "legend"),
    "load_catalog": ("geoflow.imagery", "load_catalog"),
    "load_change_labels": ("geoflow.labels", "load_change_labels"),
    "load_cube": ("geoflow.imagery", "load_cube"),
    "load_job": ("geoflow.jobs.jobfile", "load_job"),
    "load_labels": ("geoflow.labels", "load_labels"),
    "load_model": ("geoflow.modelfile", "load_model"),
    "make_sample": ("geoflow.sample", "make_sample"),
    "open": ("geoflow.explore.opening", "open_country"),
    "open_patches": ("geoflow.labels", "open_patches"),
    "predict": ("geoflow.mapping.predict", "predict"),
    "run": ("geoflow.jobs.run", "run_job"),
    "save_model": ("geoflow.modelfile", "save_model"),
    "search": ("geoflow.imagery", "search"),
    "series": ("geoflow.mapping.series", "series"),
    "submit": ("geoflow.jobs.submit", "submit"),
    "transitions": ("geoflow.mapping.transitions", "transitions"),
}

__all__ = [
    "CompositeOptions",
    "ExportChoice",
    "GeoflowError",
    "Grid",
    "HeldOut",
    "InputSpec",
    "Legend",
    "MapOptions",
    "Period",
    "SegmenterOptions",
    "TransitionMatrix",
    "__version__",
    "areas",
    "change_patches",
    "composite_tile",
    "ensemble",
    "export",
    "fit_segmenter",
    "generalise",
    "legend",
    "load_catalog",
    "load_change_labels",
    "load_cube",
    "load_job",
    "load_labels",
    "load_model",
    "make_sample",
    "open",
    "open_patches",
    "predict",
    "run",
    "save_model",
    "search",
    "series",
    "submit",
    "transitions",
]

if TYPE_CHECKING:
    from geoflow.ensembles import ensemble
    from geoflow.errors import GeoflowError
    from geoflow.explore.opening import open_country as open
    from geoflow.exports.export import export
    from geoflow.exports.layers import ExportChoice
    from geoflow.grid import Grid
    from geoflow.imagery import CompositeOptions, Period, composite_tile, load_catalog, load_cube, search
    from geoflow.inputs import InputSpec
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.run import run_job as run
    from geoflow.jobs.submit import submit
    from geoflow.labels import load_change_labels, load_labels, open_patches
    from geoflow.learning.options import SegmenterOptions
    from geoflow.learning.samples import HeldOut
    from geoflow.learning.segmenter import fit_segmenter
    from geoflow.legends import Legend, legend
    from geoflow.mapping.areas import areas
    from geoflow.mapping.changepatches import change_patches
    from geoflow.mapping.generalise import generalise
    from geoflow.mapping.predict import MapOptions, predict
    from geoflow.mapping.series import TransitionMatrix, series
    from geoflow.mapping.transitions import transitions
    from geoflow.modelfile import load_model, save_model
    from geoflow.sample import make_sample


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'geoflow' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
