"""What to install for an optional part of geoflow: packages by name, as the installed metadata list them.

Never ``geoflow[...]``: an index of packages that is not your agency's may hold another project under that name.
"""

from __future__ import annotations

import shlex
from importlib import metadata


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra, for example ``pip install 's3fs>=2025.1'``.

    Where the installed metadata do not know the extra (geoflow runs from a folder, say), the command is the one for
    geoflow's repository.
    """
    from packaging.requirements import Requirement

    try:
        every = [Requirement(line) for line in metadata.requires("geoflow") or ()]
    except metadata.PackageNotFoundError:
        every = []
    needed = [
        f"{one.name}{one.specifier}"
        for one in every
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    ]
    if not needed:
        return f"pip install '.[{extra}]' in the repository"
    return f"pip install {shlex.join(needed)}"
