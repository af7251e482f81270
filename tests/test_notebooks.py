"""The notebooks of docs run from top to bottom on a finished run; what is committed shows nobody's paths or errors."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs/notebooks").glob("*.ipynb"))
MOST_BYTES = 700_000


@pytest.fixture
def stand(finished, tiny_country, tmp_path):
    """A folder as a reader's: out/quickstart and out/sample."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/quickstart").symlink_to(finished[1])
    (tmp_path / "out/sample").symlink_to(tiny_country)
    return tmp_path


def run(path, stand):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(stand)}}).execute()
    return notebook


def shown(notebook):
    """All text that the cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(str(o.get("text", "")) + str(o.get("data", {}).get("text/plain", "")) for o in outputs)


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def run_here(path, folder, monkeypatch):
    """The cells in this process, which has loaded what a kernel of its own takes half a minute to load: names at the
    end, and what the last lines of the cells show."""
    monkeypatch.chdir(folder)
    names, values = {}, []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if last is not None:
            values.append(eval(compile(last, path.name, "eval"), names))
    return names, values


@pytest.fixture
def figures():
    """Numbers of pyplot's open figures, closed afterwards."""
    import matplotlib.pyplot as plt

    plt.close("all")
    yield plt.get_fignums
    plt.close("all")


def test_the_first_map_runs_in_a_kernel(stand):
    done = run(NOTEBOOKS[0], stand)
    assert pictures(done) == 3
    assert "classes at level 3" in shown(done)
    assert "confidence" in shown(done)


def test_query_and_compare_runs(stand, monkeypatch, figures):
    names, values = run_here(NOTEBOOKS[1], stand, monkeypatch)
    text = "\n".join(repr(value) for value in values)
    assert len(figures()) == 4
    assert "Map 2018 against Map 2024, level 1 of corine" in text
    assert "model of maps 2018, 2024" in text
    assert len(names["patches"])
    assert names["place"].size == 1


def test_train_your_own_runs(stand, monkeypatch, figures):
    names, _ = run_here(NOTEBOOKS[2], stand, monkeypatch)
    assert (stand / "out/my-model/model.json").is_file()
    assert set(names["mapped"].data_vars) >= {"level1", "level2", "level3", "confidence"}
    assert (names["mapped"]["level1"] > 0).mean() > 0.9
    assert len(figures()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("which", "many"), [(1, 4), (2, 3)])
def test_the_others_run_in_a_kernel(stand, which, many):
    assert pictures(run(NOTEBOOKS[which], stand)) == many


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_committed_has_outputs_and_nobodys_paths(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    for word in ("/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/", "/t" + "mp/", "Traceback"):
        assert word not in text
    notebook = nbformat.read(path, as_version=4)
    assert pictures(notebook) >= 3
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
