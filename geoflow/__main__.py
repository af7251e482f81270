"""``python -m geoflow``."""

from geoflow.cli import main

main()
