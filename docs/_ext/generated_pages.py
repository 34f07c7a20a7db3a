"""Pages made at each build, in docs/generated: the committed results, and the C++ headers."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "generated"
INCLUDE = "```{include} %s\n:relative-images:\n```\n"
HEADER = "## %s\n\n%s\n\n```{literalinclude} %s\n:language: %s\n```\n\n"


def results():
    """A page for each page of bench/results, by name."""
    folder = ROOT / "bench" / "results"
    for page in sorted(folder.rglob("*.md")):
        name = "-".join(page.parent.relative_to(folder).parts)
        yield f"results/{name}.md", INCLUDE % f"../../../{page.relative_to(ROOT)}"


def headers(folder="csrc/include/edlm"):
    """One page of all public headers, each with the comment that it begins with as its sentence."""
    text = "# Headers\n\nAs they are installed, in alphabetical order.\n\n"
    for header in sorted((ROOT / folder).glob("*.h")):
        source = header.read_text()
        comment = re.match(r"(?://.*\n)+", source)[0]
        lines = re.findall(r"^/{2,3}(?!/)(?! @file) ?(.*)", comment, re.MULTILINE)
        sentence = " ".join(lines).split(". ")[0].rstrip(".") + "."
        path = f"../../{header.relative_to(ROOT)}"
        text += HEADER % (f"`edlm/{header.name}`", escaped(sentence), path, "cpp")
    return text


def escaped(text):
    """Markdown that shows this text as it is."""
    return re.sub(r"([\\`*_{}\[\]<>$#])", r"\\\1", text)


def write(app, config):
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, text in [*results(), ("headers.md", headers())]:
        page = FOLDER / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)


def without_links_out(app, docname, content):
    """Links to folders and Markdown outside the pages keep their text only: there is no page."""

    def kept(link):
        text, target = link.groups()
        path = (Path(app.env.doc2path(docname)).parent / target).resolve()
        outside = not path.is_relative_to(ROOT / "docs")
        return text if outside and (path.is_dir() or path.suffix == ".md") else link[0]

    content[0] = re.sub(r"\[([^\]]*)\]\((\.\./[^)#\s]+)\)", kept, content[0])


def setup(app):
    app.connect("config-inited", write)
    app.connect("source-read", without_links_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
