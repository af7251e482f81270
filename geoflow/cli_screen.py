"""How all commands speak: one screen, ``-v`` and ``-q``, ``--json``, and what Ctrl-C says.

Standard output holds what was asked for: tables and sentences, or with ``--json`` one JSON value and nothing else.
Errors go to standard error, and so does progress under ``--json``.
"""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.console import Console as Progress

QUIET, NORMAL, VERBOSE = 0, 1, 2
_WIDE = 240  # of a table that goes to a file: ids and paths are long, and lines there may be as well
_volume: ContextVar[int] = ContextVar("volume", default=NORMAL)

_PANEL = "For every command"
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell more: a line a task.", rich_help_panel=_PANEL, show_default=False)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Only errors and the last line.", rich_help_panel=_PANEL, show_default=False),
]


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console as every command has it: it breaks no line, and is wide where nobody looks."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # COLUMNS says nothing of a file: readline, in whatever called us, may have put it into the environment.
    return Console(stderr=stderr, soft_wrap=True, quiet=quiet, width=None if stream.isatty() else _WIDE)


@dataclass(frozen=True)
class Screen:
    """Where a command speaks, and how loudly.

    Parameters
    ----------
    volume : int
        `QUIET`, `NORMAL` or `VERBOSE`.
    as_json : bool
        Whether a program reads standard output.
    """

    volume: int
    as_json: bool = False

    @cached_property
    def out(self) -> Console:
        """For tables and sentences; silent under ``-q`` and ``--json``."""
        return make_console(quiet=self.as_json or self.volume == QUIET)

    @cached_property
    def news(self) -> Console:
        """For what happens meanwhile; silent under ``-q``."""
        return make_console(stderr=self.as_json, quiet=self.volume == QUIET)

    @property
    def quiet(self) -> bool:
        """Whether only the last line is wanted."""
        return self.volume == QUIET

    @property
    def verbose(self) -> bool:
        """Whether more was asked for."""
        return self.volume == VERBOSE

    @cached_property
    def progress(self) -> Progress:
        """For `geoflow.jobs`: bars on a terminal, lines in a log, nothing under ``-q``."""
        from geoflow.jobs.console import QuietConsole, RichConsole

        return QuietConsole() if self.volume == QUIET else RichConsole(self.news, self.verbose)

    def last(self, text: str) -> None:
        """The line that says how it ended: told under ``-q``, too. ``text`` is rich markup."""
        if not self.as_json:
            make_console().print(text, highlight=False)

    def json(self, values: Any) -> None:
        """The answer for programs."""
        from geoflow.jobs.plain import as_json

        typer.echo(as_json(values), nl=False)


def screen(as_json: bool = False) -> Screen:
    """The screen of the command that runs."""
    return Screen(_volume.get(), as_json)


def set_volume(verbose: bool, quiet: bool, from_start: bool = False) -> None:
    """Take ``-v`` and ``-q`` over; ``from_start`` for those that stand before the name of the command."""
    if verbose and quiet:
        raise typer.BadParameter("give -v or -q, not both")
    if verbose or quiet or from_start:
        _volume.set(VERBOSE if verbose else QUIET if quiet else NORMAL)


def complete_files() -> list[str]:
    """No proposals of ours, so that the shell proposes files."""
    return []


def with_manners(command: Callable[..., None], goes_on: bool = False) -> Callable[..., None]:
    """A command with ``-v`` and ``-q``, paths that the shell completes, and a word on what to do after Ctrl-C.

    Parameters
    ----------
    command : callable
        As typer takes it.
    goes_on : bool
        Whether the same command line goes on from where it was interrupted.
    """

    @functools.wraps(command)
    def run(*args: Any, verbose: bool = False, quiet: bool = False, **options: Any) -> None:
        set_volume(verbose, quiet)
        try:
            command(*args, **options)
        except (KeyboardInterrupt, typer.Abort):
            kept = "What is done is kept; to go on:" if goes_on else "To begin again:"
            typer.echo(f"\nInterrupted. {kept} {shlex.join(['geoflow', *sys.argv[1:]])}", err=True)
            raise typer.Exit(130) from None

    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())
    _let_the_shell_complete(own)
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("verbose", Verbose), ("quiet", Quiet))
    ]
    run.__signature__ = signature.replace(parameters=[*own, *ours])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *ours)}
    return run


def _let_the_shell_complete(parameters: Iterable[inspect.Parameter]) -> None:
    for parameter in parameters:
        if get_origin(parameter.annotation) is not Annotated:
            continue
        kind, *notes = get_args(parameter.annotation)
        if Path in (kind, *get_args(kind)):
            for note in notes:
                # typer would propose what was typed so far, and bash then looks no further.
                if getattr(note, "autocompletion", complete_files) is None:
                    note.autocompletion = complete_files


def give_manners(app: typer.Typer, going_on: Iterable[Callable[..., None]] = ()) -> None:
    """`with_manners` for all commands of an app and of the groups below it; ``going_on`` names those that go on."""
    lasting = set(going_on)
    for info in app.registered_commands:
        if info.callback is not None:
            info.callback = with_manners(info.callback, info.callback in lasting)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            give_manners(group.typer_instance, lasting)
