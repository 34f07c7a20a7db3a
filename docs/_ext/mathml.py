"""Formulas as MathML, which browsers draw by themselves: pages need no script from anywhere.

A formula that docutils cannot read ends the build.
"""

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.errors import ExtensionError


def written(text, as_block):
    try:
        return latex2mathml.tex2mathml(text, as_block=as_block)
    except MathError as error:
        raise ExtensionError(f"formula {text!r}: {error}") from error


def inline(translator, node):
    translator.body.append(written(node.astext(), False))
    raise nodes.SkipNode


def block(translator, node):
    translator.body.append(f'<div class="math">{written(node.astext(), True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
