"""The section of a document that a command writes: what is between two comments that Markdown does not show."""

from __future__ import annotations

from pathlib import Path

from kinema.errors import OutputError, RequestError

BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


def replaced(text: str, section: str) -> str:
    """`text` with `section` between its two comments. Raises RequestError if they are not there, once and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise RequestError(f"wanted one {BEGIN} and one {END} after it, each on a line of its own")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def write_section(path: str, section: str) -> None:
    """Replace the file's section, atomically. Raises RequestError and OutputError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}") from error
    try:
        text = replaced(text, section)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
