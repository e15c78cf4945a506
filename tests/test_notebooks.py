"""The notebooks run from top to bottom on synthesised audio, and are kept without what they printed."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

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


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name: str, kernel: KernelManager) -> None:
    notebook = read(name)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(notebook, timeout=TIMEOUT_S, km=kernel).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures, "a notebook that shows nothing"
