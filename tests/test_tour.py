"""docs/tour.ipynb runs from top to bottom in an empty folder, and its stored outputs are small."""

import json
import os
import pathlib
import re

import pytest

from commands import QUICK

ROOT = pathlib.Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
CODE = [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]
TINY = (
    "--config.sft.updates=20 --config.sft.batch_size=8 --config.rl.iterations=1 --config.rl.prompts=2 --config.rl.show_every=1 "
    "--config.evaluation.problems=8 --config.evaluation.batch_size=8"
)


def test_the_stored_outputs_are_those_of_one_run_on_no_particular_machine():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert outputs and all(output["output_type"] == "stream" and output["name"] == "stdout" for output in outputs)
    assert not re.search(r'["\s](/\w+){2}', "".join("".join(output["text"]) for output in outputs))
    assert TOUR.stat().st_size < 50_000


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)\s]+)\)", TOUR.read_text()):
        assert (TOUR.parent / link).exists(), link


@pytest.mark.slow
def test_the_tour_runs_in_an_empty_folder(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in {"IGPO_TOUR_FLAGS": TINY, "XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    tour = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(tour, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in tour.cells if cell.cell_type == "code"]
    assert (tmp_path / "runs" / "tour" / "result.json").exists()
    assert len([text for text in printed if text]) == len([cell for cell in CODE if cell["outputs"]])
