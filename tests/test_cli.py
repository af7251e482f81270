"""The manners of the command line: help, volume, JSON, colours, exit codes, Ctrl-C, completion."""

from __future__ import annotations

import inspect
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from geoflow.cli import app, main
from geoflow.cli_screen import NORMAL, QUIET, VERBOSE, Screen, set_volume, with_manners

ROOT = Path(__file__).parent.parent
HIDDEN = {"drive"}  # drivers call it
REPORTING = {
    "run", "plan", "validate", "submit", "resume", "list", "status", "cancel", "evaluate", "areas", "verify", "search",
    "audit", "doctor", "export", "lr", "accuracy plan", "accuracy assess", "accuracy compare", "labels windows",
    "labels leakage", "bigearthnet stats", "weights list",
}  # fmt: skip
"""Commands whose answer a program may want."""


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        elif name not in HIDDEN:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def geoflow(*arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "geoflow", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


@pytest.fixture
def inside(monkeypatch, capsys):
    """The real command line in this process, which has loaded already what takes seconds to load."""

    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["geoflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, said.out, said.err)

    return call


def flags(command: Any) -> set[str]:
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_would_take(name):
    command = COMMANDS[name]
    examples = re.findall(r"^ *Example: (.+)", inspect.cleandoc(command.help), re.MULTILINE)
    assert examples, f"geoflow {name} has no example"
    for example in examples:
        words = shlex.split(example)
        assert words[0] == "geoflow"
        # `geoflow bigearthnet SRC OUT` is short for the command make.
        rest = words[2:] if name == "bigearthnet make" else words[1 + len(name.split()) :]
        assert name == "bigearthnet make" or words[1 : 1 + len(name.split())] == name.split()
        command.make_context(name, rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_as_the_others_do(name):
    command = COMMANDS[name]
    assert {"-v", "--verbose", "-q", "--quiet", "-h", "--help"} <= flags(command) | {"-h", "--help"}
    assert ("--json" in flags(command)) == (name in REPORTING)
    for option in command.params:
        assert option.help, f"{name}: {option.name} says nothing"
        if "--json" in option.opts:
            assert option.is_flag, "JSON goes to standard output"


def test_help_fits_a_terminal_and_comes_from_every_command_alike():
    shown = geoflow("run", "--help", COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "Example: geoflow run" in shown
    assert geoflow("--version").stdout == geoflow("version").stdout
    assert geoflow().returncode == 2


def test_the_volume_is_taken_before_and_after_the_command(capsys):
    heard = []

    def command() -> None:
        from geoflow.cli_screen import screen

        heard.append(screen().volume)

    speak = with_manners(command)
    for before, after, volume in (
        ({}, {}, NORMAL),
        ({"quiet": True}, {}, QUIET),
        ({}, {"verbose": True}, VERBOSE),
        ({"quiet": True}, {"verbose": True}, VERBOSE),  # what stands nearer counts
    ):
        set_volume(before.get("verbose", False), before.get("quiet", False), from_start=True)
        speak(**after)
        assert heard.pop() == volume
    set_volume(False, False, from_start=True)
    with pytest.raises(typer.BadParameter, match="not both"):
        speak(verbose=True, quiet=True)


def test_what_is_said_where(capsys):
    for volume in (QUIET, NORMAL):
        shown = Screen(volume, as_json=True)
        shown.out.print("table")
        shown.news.print("news")
        shown.last("last")
        shown.json({"a": [float("nan"), 1]})
        said = capsys.readouterr()
        assert json.loads(said.out) == {"a": [None, 1]}
        assert said.err == ("news\n" if volume == NORMAL else "")
    shown = Screen(QUIET)
    shown.out.print("table")
    shown.news.print("news")
    shown.last("last")
    assert capsys.readouterr() == ("last\n", "")


def test_a_log_hears_of_a_long_stage_now_and_then(monkeypatch):
    from rich.console import Console

    from geoflow.jobs import console

    task = type("Task", (), {"key": "r0c0"})()
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    for verbose, expected in (
        (False, ["Maps          2/100 tasks, 16 min 20 s left", "Maps          5/100 tasks, 15 min 50 s left"]),
        (True, [f"Maps          {n}/100 r0c0" for n in range(1, 101)]),
    ):
        text = io.StringIO()
        with console.RichConsole(Console(file=text, width=200), verbose).stage("Maps", 100, 0) as progress:
            for _ in range(100):
                clock[0] += 10
                progress.advance(task)
        lines = text.getvalue().splitlines()
        assert [line for line in lines if line in expected] == expected
        assert lines[-1] == "Maps          100 tasks in 1000.0 s"
        assert verbose or len(lines) <= 9


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("version",), 0, ""),
        (("validate", "jobs/estonia.yaml"), 1, ""),  # it did its work, and what it looked at is not right
        (("run", "no.yaml"), 2, "error: there is no job file no.yaml"),
        (("run",), 2, "Missing argument 'JOB'"),
        (("status", "nothing"), 2, "geoflow list"),
    ],
)
def test_exit_codes(arguments, code, words, inside, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = inside(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert (code == 2) == bool(done.stderr)
    page = (ROOT / "docs/how-to/command-line.md").read_text("utf-8")
    assert re.search(rf"^\| {code} \|", page, re.MULTILINE)


def test_programs_get_json_and_people_one_line(finished, inside):
    job, out = finished
    planned = inside("plan", job, "--out", out, "--json")
    stages = json.loads(planned.stdout)["stages"]
    assert stages["predict"]["tasks"] == stages["predict"]["keep"] == 12
    status = json.loads(inside("status", out, "--json").stdout)
    assert status["state"] == "complete"
    quiet = inside("status", "-q", out)
    assert re.fullmatch(r"quickstart complete after .*report\.html\n", quiet.stdout), quiet.stdout
    shown = inside("status", out)
    assert "Composites" in shown.stdout
    assert shown.stdout.endswith(quiet.stdout)


def on_terminal(command: list[str], keys: tuple[tuple[str, str], ...] = (), **variables: str) -> tuple[int, str]:
    """Run a command on a real terminal of 80 columns; ``keys``: what to type once what comes before was said."""
    import fcntl
    import select
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    env = {**{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}, "TERM": "xterm", **variables}
    said, waiting, deadline = "", list(keys), time.monotonic() + 60
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True) as process:
        os.close(slave)
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    said += os.read(master, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
            if waiting and waiting[0][0] in said:
                os.write(master, waiting.pop(0)[1].encode())
        process.terminate()
    os.close(master)
    return process.returncode, said


def test_colours_are_for_terminals_and_can_be_switched_off():
    command = [sys.executable, "-m", "geoflow", "weights", "list"]
    _, coloured = on_terminal(command)
    assert "\x1b[" in coloured
    _, plain = on_terminal(command, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)
    assert "\x1b[" not in geoflow("weights", "list").stdout


def test_tables_fit_a_terminal_and_are_whole_in_a_file(finished, inside):
    _, out = finished
    command = [sys.executable, "-m", "geoflow", "accuracy", "plan", str(out), "--epoch", "2018"]
    _, shown = on_terminal(command, NO_COLOR="1")
    table = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()[:-1]
    assert max(len(line.rstrip()) for line in table) <= 80
    assert "…" not in shown
    assert "3 Forest and semi natural areas" in inside("accuracy", "plan", out, "--epoch", 2018).stdout


def test_ctrl_c_says_how_to_go_on():
    code = (
        "import sys; sys.argv[0] = 'geoflow'; import geoflow.cli as c, os, signal; "
        "import geoflow.sample as s; s.make_sample = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or 1; c.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "sample", "out/a b"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "Interrupted. To begin again: geoflow sample 'out/a b'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_interrupted_says_how_to_go_on(tmp_path, tiny_country):
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: tiny\narea: {{file: {tiny_country}/border.gpkg}}\ngrid: {{crs: 'EPSG:3035', tile: 256, chunk: 128}}\n"
        f"imagery:\n  catalog: sample\n  url: {tiny_country}/stac/catalog.json\n"
        "  epochs: {2018: {spring: 2018-04-01/2018-06-15}}\n"
    )
    command = [sys.executable, "-m", "geoflow", "run", str(job), "--out", str(tmp_path / "out"), "--cluster", "threads"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        lines = running.stdout
        assert lines is not None
        for line in lines:
            if line.startswith("Dask:"):
                break
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    kept = f"Interrupted. What is done is kept; to go on: geoflow run {job} --out {tmp_path / 'out'} --cluster threads"
    assert kept in errors


def test_bash_completes_commands_jobs_and_catalogs(tmp_path):
    """A real bash, with what --install-completion wrote."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/mine.yaml").write_text("")
    (tmp_path / "border.gpkg").write_text("")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    program = bin_ / "geoflow"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom geoflow.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{bin_}:{os.environ['PATH']}"}
    installed = subprocess.run(
        ["bash", "-c", "geoflow --install-completion; true"], env=env, capture_output=True, text=True, check=True
    )
    assert "completion installed" in installed.stdout
    script = """
        source "$HOME/.bash_completions/geoflow.sh"
        complete -p geoflow
        try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _geoflow_completion geoflow; echo "${COMPREPLY[*]}"; }
        IFS=,
        try geoflow val
        try geoflow validate jo
        try geoflow init --catalog plan
        try geoflow areas out --zones bord
    """
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "complete -o default -F _geoflow_completion geoflow",  # the default: files
        "validate",
        "jobs/mine.yaml",
        "planetary-computer",
        "",  # so that bash itself completes the file
    ]
