"""The notebooks run from top to bottom on synthesised audio, and are kept without what they printed."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

from speech.bundle import DEFAULT_MODEL

ROOT = Path(__file__).parents[1]
NAMES = [
    "01_hear_the_data.ipynb",
    "02_the_lstm_from_its_equations.ipynb",
    "03_why_not_a_plain_rnn.ipynb",
    "04_train_and_listen.ipynb",
    "05_where_it_errs.ipynb",
]
TIMEOUT_S = 900
"""For one cell."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def test_these_are_the_notebooks() -> None:
    assert sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_was_printed_is_kept(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks, because importing the training stack takes longer than most cells."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def execute(notebook: nbformat.NotebookNode, kernel: KernelManager, train: str) -> None:
    """Run a notebook from top to bottom, with `recipes.train.main` replaced by an expression."""
    first = f"""%reset -f
from recipes import train
train.whole_main = getattr(train, "whole_main", train.main)
train.main = {train}"""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    NotebookClient(notebook, timeout=TIMEOUT_S, km=kernel).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures, "a notebook that shows nothing"


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name: str, kernel: KernelManager) -> None:
    execute(read(name), kernel, "train.whole_main")


def with_data(name: str, root: Path) -> nbformat.NotebookNode:
    """The notebook with a data folder, as its reader would set it, and the shipped bundle."""
    notebook = read(name)
    for setting, value in (("DATA = None", root), ("BUNDLE = None", DEFAULT_MODEL)):
        cells = [cell for cell in notebook.cells if cell.source.startswith(setting) or f"\n{setting}" in cell.source]
        assert len(cells) == 1 or setting != "DATA = None"
        for cell in cells:
            cell.source = cell.source.replace(setting, f"{setting.split()[0]} = {str(value)!r}")
    return notebook


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("03")])
def test_it_runs_on_a_data_folder(name: str, root: Path, kernel: KernelManager) -> None:
    """The toy corpus in the place of real recordings; the training is only begun."""
    brief = '["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]'
    execute(with_data(name, root), kernel, f"lambda arguments: train.whole_main([*arguments, *{brief}])")


def test_both_trainings_on_a_data_folder_have_the_same_options() -> None:
    """So notebook 03, whose other cells take long, need not run twice."""
    options = [re.findall(r"arguments \+= (.*)", cell.source) for name in NAMES for cell in read(name).cells]
    trainings = [found for found in options if found]
    assert len(trainings) == 2
    assert trainings[0] == trainings[1]
