"""`make notebook`: executes diagnose.py and stores it, with what it printed, as diagnose.ipynb."""

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SOURCE = Path(__file__).with_name("diagnose.py")


def main() -> None:
    notebook = jupytext.read(SOURCE)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
    nbformat.write(notebook, SOURCE.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
