"""Prompts as text-to-video models expect them."""

from __future__ import annotations

import html
import re


def clean_prompt(text: str) -> str:
    """Mend broken Unicode, resolve HTML entities (twice: "&amp;lt;" is "<"), make all whitespace single spaces.

    Equal to diffusers' `prompt_clean`. As there, mending needs the ftfy package and is skipped without it:
    a prompt with mojibake or curly quotes then reaches the tokenizer as it is.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else it would only be imported, for 60 ms
        text = _mended(text)
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text).strip()


def _mended(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        return text
    mended: str = ftfy.fix_text(text)
    return mended
