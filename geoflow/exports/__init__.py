"""A finished run as files for other programs: COGs, QGIS styles, STAC, polygons, pictures."""
