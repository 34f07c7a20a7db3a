"""Sphinx: `make docs` writes build/docs/index.html. Pages are Markdown (MyST)."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

from edlm_engine.version import __version__  # noqa: E402

project = author = "edlm_engine"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "docstrings", "generated_pages", "mathml"]
exclude_patterns = ["_ext", "README.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_title = f"edlm_engine {release}"
html_show_sourcelink = False
html_show_copyright = False
toc_object_entries = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_theme_options = {
    "description": "Exact, fast sampling for energy-based diffusion language models",
    "fixed_sidebar": True,
    "page_width": "1080px",
    "sidebar_width": "240px",
}
html_math_renderer = "mathml"

# Shapes, dtypes and types stand in the docstrings, in words.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# A name in single backticks is a link where it is documented, and code where it is not.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:(obj|class|data|exc)", ".*")]
