"""The notebook in examples/ runs from its first cell to its last, in a kernel of its own."""

import re

import pytest
from helpers import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "examples" / "guard_a_classifier.ipynb"


def outputs(notebook) -> list[list[str]]:
    """Return the kinds of what each code cell shows: text, or the types of rich output."""
    return [
        [output.get("name") or ",".join(sorted(output.data)) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_guards_its_classifier(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)

    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()

    # The outputs in the file are those of its code, and no library has written to stderr.
    assert outputs(notebook) == stored
    assert {kind for kinds in stored for kind in kinds} == {"stdout", "image/png,text/plain"}

    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    rows = re.findall(r"^(known digits|4 and 9|letters) +(\d+)% +(\d+)%$", printed, re.MULTILINE)
    accepted = {name: (int(guarded), int(alone)) for name, guarded, alone in rows}
    assert accepted["known digits"][0] >= 85
    for unknown in ("4 and 9", "letters"):
        assert accepted[unknown][0] <= 20
        assert accepted[unknown][0] < accepted[unknown][1]
    assert printed.splitlines()[-2].startswith("rejected; ")
    assert printed.splitlines()[-1].startswith("accepted as 6 ")
