"""The notebook runs from top to bottom as a reader has it, on a CPU, and shows what it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "own-video.ipynb"


@pytest.mark.usefixtures("videos_of_packages")
def test_the_notebook_shows_flow_and_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'mcjepa[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'mcjepa[notebook]'")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))  # nothing of it in the reader's home
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    words = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    found = re.search(r"mean length ([\d.]+) px", words)
    assert len(pictures) == 2
    assert found and float(found[1]) > 0.5  # the clip moves, and the weights know it


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
