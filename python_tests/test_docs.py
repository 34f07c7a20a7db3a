"""Every Python block of the pages for embedders runs, in order, as one program a page."""

import re
import sys
import types
from pathlib import Path

import pytest

import edlm_engine

DOCS = Path(edlm_engine.__file__).parents[1] / "docs"
PAGES = ["compiled.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed, this is no checkout"),
]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, monkeypatch):
    text = (DOCS / page).read_text()
    # Blank lines in place of prose, so that an error names the line of the page.
    at, code = 0, ""
    for block in BLOCK.finditer(text):
        code += "\n" * text.count("\n", at, block.start(1)) + block[1]
        at = block.end(1)
    assert code.strip()
    module = types.ModuleType(f"docs_{page.removesuffix('.md')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # torch.compile looks it up
    exec(compile(code, str(DOCS / page), "exec"), module.__dict__)
