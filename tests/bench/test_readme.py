"""The README's performance section: written by the command that it names, from JSON that is in the repository."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from kinema.bench.readme import BEGIN, END, replaced
from kinema.cli.main import main
from kinema.errors import RequestError

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_the_readmes_figures_are_those_of_the_committed_json(tmp_path, monkeypatch):
    """The command is run as the section names it, on a copy, and changes nothing."""
    text = README.read_text(encoding="utf-8")
    (command,) = re.findall(r"written by `kinema (.*?)`", text[text.index(BEGIN) : text.index(END)])
    words = shlex.split(command)
    reports = [word for word in words if word.endswith(".json")]
    assert reports
    for name in reports:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text(replaced(text, "nothing"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


def test_another_figure_is_another_section(tmp_path, monkeypatch):
    shutil.copy(README, tmp_path / "README.md")
    report = json.loads((ROOT / "docs" / "performance.json").read_text())
    row = next(row for row in report["rows"] if "seconds" in row)
    row["seconds"]["median"] *= 3
    (tmp_path / "new.json").write_text(json.dumps(report))
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "report", "new.json", "--readme", "README.md"]) == 0
    old, new = README.read_text(encoding="utf-8"), (tmp_path / "README.md").read_text(encoding="utf-8")
    assert new != old and new.partition(BEGIN)[0] == old.partition(BEGIN)[0]
    assert new.partition(END)[2] == old.partition(END)[2] and "`kinema bench report new.json --readme README.md`" in new


@pytest.mark.parametrize("text", ["", BEGIN, END, END + BEGIN, BEGIN + END + END, BEGIN + BEGIN + END])
def test_a_file_without_its_two_comments_is_left_alone(text, tmp_path, monkeypatch, capsys):
    with pytest.raises(RequestError, match="wanted one"):
        replaced(text, "x")
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(text)
    assert main(["bench", "report", str(ROOT / "docs" / "performance.json"), "--readme", "README.md"]) == 1
    assert "README.md: wanted one" in capsys.readouterr().err and Path("README.md").read_text() == text
