"""The documentation: it builds without a warning, its first page leads on, its code runs."""

import io
import re
import subprocess
import sys
import types
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

import openai
import pytest
from enumeration import TinyDenoiser
from letters import served
from mdlm_forks import Edlm
from tiny_models import TableAR

import edlm_engine as edlm
from edlm_engine.info import HEAD_OPS, OPS
from edlm_engine.sampling.session import Session

ROOT = Path(edlm.__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed, this is no checkout"),
]

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"# not run by the tests: (.+)\n")
MOST_STEPS, MOST_CANDIDATES = 4, 4  # of the generations of a page, which may ask for more


class Block(NamedTuple):
    page: str
    line: int
    code: str
    output: str | None  # what it prints, if the page shows it

    @property
    def reason(self):
        """Why it is not run; None if it is."""
        found = NOT_RUN.match(self.code)
        return found and found[1]


def blocks_of(page, text):
    """The fenced Python of a page. A fence of text right behind it shows its output."""
    fences = list(FENCE.finditer(text))
    for fence, after in zip_longest(fences, fences[1:]):
        if fence[1] == "python":
            shown = after and after[1] == "text" and not text[fence.end() : after.start()].strip()
            line = text[: fence.start(2)].count("\n")
            yield Block(page, line, fence[2], after[2] if shown else None)


def pages():
    files = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files if file.is_file()}


BLOCKS = [block for page, text in pages().items() for block in blocks_of(page, text)]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Generations take few steps and candidates, and one engine serves all pages."""
    read, start = edlm.Engine.from_pretrained, Session.start

    def from_pretrained(path=None, **options):
        key = path, *options.items()
        if key not in ENGINES:
            ENGINES[key] = read(path, **options)
        return ENGINES[key]

    def start_small(session, config, xt, seeds):
        steps = config.steps and min(config.steps, MOST_STEPS)
        candidates = min(config.num_candidates, MOST_CANDIDATES)
        return start(session, replace(config, steps=steps, num_candidates=candidates), xt, seeds)

    monkeypatch.setattr(edlm.Engine, "from_pretrained", from_pretrained)
    monkeypatch.setattr(Session, "start", start_small)
    monkeypatch.chdir(tmp_path)


ENGINES = {}


@contextmanager
def surroundings(page, monkeypatch):
    """Names that a page leaves to its reader, and what it says is running."""
    if page == "README.md":
        yield {"model": Edlm(TinyDenoiser(3, 2, mask_id=2), TableAR(3, 2))}
    elif page == "docs/serving.md":
        with served(edlm.Engine.from_pretrained(), name="edlm-novels") as (url, _):
            client, own = openai.OpenAI, {"base_url": f"{url}/v1", "max_retries": 0}
            monkeypatch.setattr(openai, "OpenAI", lambda **given: client(**{**given, **own}))
            yield {}
    else:
        yield {}


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_the_code_of_a_page_runs(page, small, monkeypatch):
    module = types.ModuleType("docs_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # torch.compile looks it up
    names, blocks = vars(module), [block for block in BLOCKS if block.page == page]
    with surroundings(page, monkeypatch) as given:
        names.update(given)
        for block in blocks:
            if not block.reason:
                assert block.output in (None, printed_by(block, names)), f"{page}:{block.line}"


def printed_by(block, names):
    """What a block prints, run in these names."""
    # Behind empty lines, so that a traceback names the line of the page.
    code = compile("\n" * block.line + block.code, str(ROOT / block.page), "exec")
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.reason], ids=lambda block: f"{block.page}:{block.line}"
)
def test_what_is_not_run_compiles(block):
    compile(block.code, block.page, "exec")
    pytest.skip(block.reason)


def test_most_blocks_run():
    assert len([block for block in BLOCKS if block.reason]) * 6 < len(BLOCKS)


def test_blocks_are_found():
    shown = "a\n```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n"
    left_out = "```python\n# not run by the tests: why\n```\n"
    first, second = blocks_of("page", shown + left_out)
    assert (first.line, first.output, first.reason) == (2, "1\n", None)
    assert (second.output, second.reason) == (None, "why")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages as HTML, by name, from a build that a warning ends."""
    pytest.importorskip("myst_parser")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    run = subprocess.run([*command, str(DOCS), str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*.html")}


def links(site, page):
    """The pages that the text of a page leads to; its sidebar does not count."""
    text = site[page].split('role="main">')[1].split('<div class="sphinxsidebar')[0]
    targets = re.findall(r'href="([^"#]+)', text)
    return {urljoin(page, target) for target in targets} & site.keys()


@pytest.mark.parametrize(
    "shown",
    ["edlm::cpu::sample_candidates", "arrays.sample_candidates", "ops.residual_draw"],
    ids=["C++", "NumPy", "own loop"],
)
def test_two_clicks_from_the_first_page(site, shown):
    first = links(site, "index.html")
    second = {page for each in first for page in links(site, each)}
    plain = {page: re.sub(r"<[^>]+>", "", site[page]) for page in first | second}
    assert [page for page, text in plain.items() if shown in text]
    assert len(first) < 60


def test_every_public_name_is_documented(site):
    anchor = r'id="(?:module-)?(edlm_engine[\w.]*)"'
    ids = {each for page in site.values() for each in re.findall(anchor, page)}
    wanted = {f"edlm_engine.{name}" for name in edlm.__all__}
    wanted |= {f"edlm_engine.ops.{name}" for name in (*OPS, *HEAD_OPS)}
    assert wanted - ids == set()
