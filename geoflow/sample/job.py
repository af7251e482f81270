"""The main job, beside the sample country that it maps."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

JOB = "quickstart.yaml"
_THERE = "../out/sample/"
"""Where the country lies, as seen from the job in the repository."""


def write_job(folder: Path) -> Path:
    """Write the main job into the folder of a sample country, with paths relative to that folder.

    It is ``jobs/quickstart.yaml``, so that who installed geoflow without its repository can run the same job.

    Parameters
    ----------
    folder : Path
        The sample country.

    Returns
    -------
    Path
        The job, ``quickstart.yaml`` in the folder.
    """
    path = folder / JOB
    text = _template().read_text(encoding="utf-8")
    body = text[text.index("\nname:") + 1 :].replace(_THERE, "")
    path.write_text(_HEAD + body, encoding="utf-8", newline="\n")
    return path


_HEAD = """\
# The main job on this sample country, as geoflow sample wrote it: two epochs of Sentinel-2, CORINE 2018, a classifier
# on BigEarthNet-like patches, a U-Net with its encoder, maps of both epochs at three levels, and the change between
# them. geoflow run takes this file. Paths are relative to it.
"""


def _template() -> Path:
    """The job as it is packaged in a wheel, or in a checkout's folder of jobs."""
    packaged = Path(str(files("geoflow"))) / "jobs" / JOB
    return packaged if packaged.is_file() else Path(__file__).parents[2] / "jobs" / JOB
