"""The national store as one commit of an icechunk repository: a history of what was published.

The run writes plain Zarr, on which its receipts rest. When it is complete and sealed, this makes the tree of the
repository's branch ``main`` equal to ``country.zarr``. Encoded chunks are copied as they are; what is equal already is
not written, and what is gone is removed. Nothing is visible before the commit.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from geoflow.errors import StoreError
from geoflow.extras import how_to_install
from geoflow.places import endpoint, entries, files_below, is_remote, read_bytes
from geoflow.store.receipts import CHECKSUM, digest, read_sealed, relative
from geoflow.store.seal import SEAL, read_seal
from geoflow.store.verify import STORE

BRANCH = "main"

_AT_ONCE = 32
"""Chunks that are in memory at once."""

_META = "zarr.json"


@dataclass(frozen=True)
class Commit:
    """A commit that was made.

    Parameters
    ----------
    snapshot : str
        Its id.
    written, removed : int
        Keys that are new or other than before, and keys and nodes that are gone.
    """

    snapshot: str
    written: int
    removed: int


def check_repository(path: Path, out: Path) -> None:
    """What can be seen of a repository before work and without the network.

    Raises
    ------
    StoreError
        If icechunk is not installed, the path lies in the output, or holds something else.
    """
    if importlib.util.find_spec("icechunk") is None:
        raise StoreError(f"{path} needs the package icechunk: {how_to_install('icechunk')}")
    ours, theirs = f"{out}/", f"{path}/"
    if theirs.startswith(ours) or ours.startswith(theirs):
        raise StoreError(f"{path} and the output {out} lie in one another; give the repository a folder of its own")
    if not is_remote(path):
        check_holds_nothing_else(path)


def check_holds_nothing_else(path: Path) -> None:
    """A repository is there, or nothing.

    Raises
    ------
    StoreError
        If there is a file, or a folder of something else.
    """
    if not is_remote(path) and path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; an icechunk repository is a folder")
    folders, files = entries(path)
    names = {one.name for one in [*folders, *files]}
    if names and not names & {"refs", "repo"}:
        raise StoreError(f"{path} is not empty, and no icechunk repository: name one, or a new folder")


def commit_output(out: Path, repository: Path, run: str, job: str) -> Commit | None:
    """Make the tree of a repository equal to the store of a sealed output, in one commit.

    Parameters
    ----------
    out : Path
        The output folder of a run that is complete.
    repository : Path
        A local folder or a place in an object store; made if it is not there.
    run, job : str
        The run's id and its job's name, for the commit.

    Returns
    -------
    Commit or None
        None where nothing differs.

    Raises
    ------
    StoreError
        If the output is not sealed, is a part (``--limit``), or the repository cannot be opened or written.
    """
    import icechunk

    from geoflow import __version__

    seal, sealed = read_seal(out), read_sealed(out / SEAL)
    if seal is None or sealed is None or not seal.complete:
        raise StoreError(f"{out} is not the output of a complete run; only such a one is committed")
    if seal.limit is not None:
        raise StoreError(f"{out} holds only the first {seal.limit} tiles; a version is a whole map")
    content = digest(seal.tasks, {name: said for name, said in seal.files.items() if name.startswith(f"{STORE}/")})
    facts = {"run": run, "job": job, "geoflow": __version__, "seal": sealed[CHECKSUM], "content": content}
    try:
        opened = _open(repository)
        if next(iter(opened.ancestry(branch=BRANCH))).metadata.get("content") == content:
            return None
        session = opened.writable_session(BRANCH)
        written, removed = asyncio.run(_Mirror(out / STORE, session.store).run())
        if not session.has_uncommitted_changes:
            return None
        return Commit(session.commit(f"{job}: run {run}", facts), written, removed)
    except (icechunk.IcechunkError, icechunk.ConflictError) as error:
        told = " ".join(str(error).replace("|", " ").split())
        raise StoreError(f"the icechunk repository {repository} could not be written: {told}") from None


def _open(path: Path) -> Any:
    import icechunk

    # It warns of commits at the same time, which may lie on a disk; the branch's own check is what a run relies on.
    icechunk.set_logs_filter("error")
    if is_remote(path):
        url, address = urlparse(str(path)), endpoint()
        storage = icechunk.s3_storage(
            bucket=url.netloc,
            prefix=url.path.strip("/"),
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            endpoint_url=address,
            allow_http=address is not None and address.startswith("http://"),
            force_path_style=address is not None,
            from_env=True,
        )
    else:
        storage = icechunk.local_filesystem_storage(str(path))
    return icechunk.Repository.open_or_create(storage)


class _Mirror:
    """Makes a store of icechunk's equal to a folder, node by node."""

    def __init__(self, source: Path, target: Any) -> None:
        self._source, self._target = source, target
        self._written = self._removed = 0

    async def run(self) -> tuple[int, int]:
        """(keys written, keys and nodes removed)."""
        nodes = set()
        for folder in _nodes(self._source):
            name = relative(folder, self._source) if folder != self._source else ""
            nodes.add(name)
            if await self._metadata(folder, name):
                await self._chunks(folder, name)
        gone: list[str] = []
        async for key in self._target.list():
            node = key.removesuffix(_META).rstrip("/")
            if key.endswith(_META) and node not in nodes:
                gone.append(node)
        for node in sorted(gone):
            if not any(node.startswith(f"{other}/") for other in gone):
                await self._target.delete_dir(node)
                self._removed += 1
        return self._written, self._removed

    async def _metadata(self, folder: Path, name: str) -> bool:
        """Bring metadata up to date; whether it is an array."""
        key = f"{name}/{_META}" if name else _META
        content, old = read_bytes(folder / _META), await self._get(key)
        node = json.loads(content)
        if old is not None and old != content and _layout(json.loads(old)) != _layout(node):
            await self._target.delete_dir(name)  # its chunks are of another grid
            self._removed, old = self._removed + 1, None
        if old != content:
            await self._set(key, content)
        return bool(node["node_type"] == "array")

    async def _chunks(self, folder: Path, name: str) -> None:
        paths = [path for path, _ in files_below(folder) if path != folder / _META]
        for at in range(0, len(paths), _AT_ONCE):
            await asyncio.gather(*(self._chunk(path) for path in paths[at : at + _AT_ONCE]))
        keys = {relative(path, self._source) for path in paths} | {f"{name}/{_META}"}
        old = [key async for key in self._target.list_prefix(f"{name}/") if key not in keys]
        for key in old:
            await self._target.delete(key)
            self._removed += 1

    async def _chunk(self, path: Path) -> None:
        key = relative(path, self._source)
        content = await asyncio.to_thread(read_bytes, path)
        if await self._get(key) != content:
            await self._set(key, content)

    async def _get(self, key: str) -> bytes | None:
        from zarr.core.buffer import default_buffer_prototype

        found = await self._target.get(key, default_buffer_prototype())
        return None if found is None else bytes(found.to_bytes())

    async def _set(self, key: str, content: bytes) -> None:
        from zarr.core.buffer import default_buffer_prototype

        await self._target.set(key, default_buffer_prototype().buffer.from_bytes(content))
        self._written += 1


def _nodes(folder: Path) -> Iterator[Path]:
    """Groups and arrays of a store, each after its parent."""
    folders, files = entries(folder)
    if _META not in {path.name for path in files}:
        return
    yield folder
    if json.loads(read_bytes(folder / _META))["node_type"] == "group":
        for inner in folders:
            yield from _nodes(inner)


def _layout(node: dict[str, Any]) -> tuple[Any, ...]:
    return node.get("node_type"), node.get("shape"), node.get("chunk_grid")
