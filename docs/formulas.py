"""MkDocs hook: formulas become MathML when the site is built, so that a page needs neither a script nor a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """
    Replace the formulas of a page.

    :param content: HTML, with formulas as ``pymdownx.arithmatex`` leaves them
    :return: HTML with MathML
    """
    return FORMULA.sub(_mathml, content)


def _mathml(match: "re.Match[str]") -> str:
    tag, formula = match[1], html.unescape(match[2]).strip()
    # What is set as a block, and the same in a line of text; the source stays as the text to copy and to read aloud.
    display = "block" if tag == "div" else "inline"
    return f'<{tag} class="formula" title="{html.escape(formula)}">{convert(formula, display=display)}</{tag}>'
