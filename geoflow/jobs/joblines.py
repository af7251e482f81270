"""Where in a job file a key stands, and what it says there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

_MOST = 60  # characters of a value that a message quotes


class JobLines:
    """A YAML text with the place of each of its keys.

    Parameters
    ----------
    text : str

    Raises
    ------
    yaml.YAMLError
        If it is not YAML.
    """

    def __init__(self, text: str) -> None:
        self._root = yaml.compose(text, Loader=yaml.SafeLoader)

    def find(self, key: str | Sequence[int | str]) -> tuple[int | None, str | None]:
        """Line (from 1) of a key, or of the section that would hold it, and its value as written if it is a scalar.

        ``key`` is dotted, such as ``imagery.epochs.2018``, or its parts.
        """
        parts = key.split(".") if isinstance(key, str) else [str(part) for part in key]
        node, line, value = self._root, None, None
        while parts and node is not None:
            step = _step(node, parts)
            if step is None:
                return line, None
            line, node, taken = step
            parts = parts[taken:]
        if isinstance(node, yaml.ScalarNode):
            value = node.value if len(node.value) <= _MOST else node.value[: _MOST - 1] + "…"
        return line, value

    def repeated(self) -> Iterator[tuple[str, int, int]]:
        """(key, its line, the line where it stood before) of every key that stands twice: YAML keeps the last."""
        yield from _repeated(self._root, "")


def _step(node: yaml.Node, parts: Sequence[str]) -> tuple[int, yaml.Node, int] | None:
    """(line, node, how many parts it took) of the first part below a node; names may hold dots themselves."""
    if isinstance(node, yaml.SequenceNode):
        if not parts[0].isdecimal() or int(parts[0]) >= len(node.value):
            return None
        item = node.value[int(parts[0])]
        return item.start_mark.line + 1, item, 1
    if not isinstance(node, yaml.MappingNode):
        return None
    for taken in range(1, len(parts) + 1):
        name = ".".join(parts[:taken])
        for key, value in reversed(node.value):
            if str(key.value) == name:
                return key.start_mark.line + 1, value, taken
    return None


def _repeated(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, int]]:
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _repeated(item, f"{prefix}{at}.")
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            yield f"{prefix}{name}", line, seen[name]
        seen[name] = line
        yield from _repeated(value, f"{prefix}{name}.")
