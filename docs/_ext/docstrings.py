"""Docstrings of this project as reStructuredText.

They are plain text: a paragraph that begins with `name:` or `name, name:` lists arguments, each
going on over the lines below it, and an indented paragraph is a formula or a table.
"""

import re

ITEM = re.compile(r"(\w+(?:, \w+)*(?: \(or \w+\))?): (.*)")


def converted(lines):
    """The same docstring, its argument lists as bullets and its indented paragraphs as literals."""
    result, paragraph = [], []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            result += [*_paragraph(paragraph), ""]
            paragraph = []
    return result


def _paragraph(lines):
    if lines[0].startswith("    "):
        return ["::", "", *lines]
    if not ITEM.fullmatch(lines[0]):
        return lines
    items = []
    for line in lines:
        found = ITEM.fullmatch(line)
        if found:
            names, text = found.groups()
            items.append(f"- **{names}**: {text}")
        else:
            items.append(f"  {line.strip()}")
    return items


def process(app, what, name, obj, options, lines):
    lines[:] = converted(lines)


def setup(app):
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
