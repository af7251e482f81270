"""A finished country in a notebook: what `geoflow.open` gives, and its accessor ``.gf``.

``opening`` (local, s3, http) -> ``layers`` (what lies where) -> ``points``, ``clipping``, ``comparing``, ``drawing``,
``tracing``: one question each -> ``accessor``, which puts them behind ``.gf``. Nothing here trains, maps or starts a
cluster, and what is read is read block by block.
"""
