"""`kinema bench report FILE.jsonl`: tables of a file of results, here of one that nobody measured; and docs/gpu.md."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from kinema.bench.gpu_session.results import read
from kinema.bench.readme import BEGIN, END, replaced
from kinema.cli.main import main

ROOT = Path(__file__).parents[3]
SYNTHETIC = Path(__file__).with_name("synthetic.jsonl")
PAGE = """\
a made-up GPU, driver 1.2.3, torch 0.1, triton 0.2, CUDA 0.3, cuDNN 0.4; kinema 0.0.0, 0123456789, 2000-01-01.

### made up products

Asked: how fast a product is that nobody computed.

|  | TFLOP/s | time | error | why not |
| --- | ---: | ---: | ---: | ---: |
| plain | 1000 | 2 ms (1 ms to 4 ms) | 1.2e-03 |  |
| too new |  |  |  | needs compute capability 99 |
| miscompiled |  |  | 2.0e-01 | wrong: errs by 2.0e-01 (at most 5.0e-01 of the largest value) |

### made up hang

Asked: what is left of a question that hangs. Not answered in full: stopped after 60 s.

|  | copied | TB/s | time |
| --- | ---: | ---: | ---: |
| before it hung | 1 MiB | 3 | 1 ms |

a made-up GPU, driver 1.2.3, torch 0.1, triton 0.2, CUDA 0.3, cuDNN 0.4; kinema 0.0.0, no commit, 2000-01-02.

### made up crash

Asked: what is left of a question that crashes.

|  | taken | kernels | of peak | time |
| --- | ---: | ---: | ---: | ---: |
| this time | yes | 2 values | 0.1235 | 500 ms |
"""


def test_every_question_is_a_table_of_the_run_that_answered_it(capsys):
    assert main(["bench", "report", str(SYNTHETIC)]) == 0
    assert capsys.readouterr().out == PAGE


def test_it_is_put_between_a_pages_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SYNTHETIC, "made-up.jsonl")
    Path("page.md").write_text(f"before\n{BEGIN}\nold\n{END}\nbehind\n")
    command = ["bench", "report", "made-up.jsonl", "--readme", "page.md"]
    assert main(command) == 0
    written = f"*This section is written by `{shlex.join(['kinema', *command])}`.*"
    assert Path("page.md").read_text() == f"before\n{BEGIN}\n{PAGE}\n{written}\n{END}\nbehind\n"


def test_a_rehearsals_times_are_kept_out_of_pages(tmp_path, capsys):
    rehearsal, page = tmp_path / "dry.jsonl", tmp_path / "page.md"
    rehearsal.write_text(SYNTHETIC.read_text().replace('"dry": false', '"dry": true'))
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    assert main(["bench", "report", str(rehearsal)]) == 0
    assert capsys.readouterr().out.startswith(
        "**A rehearsal on a CPU: its times mean nothing.** driver 1.2.3, torch 0.1"
    )
    assert main(["bench", "report", str(rehearsal), "--readme", str(page)]) == 1
    assert "is of a rehearsal on a CPU" in capsys.readouterr().err
    assert page.read_text() == f"{BEGIN}\nold\n{END}\n"


@pytest.mark.parametrize("words", ["", "{}\n", '{"kind": "end"}\n', "not JSON\n"])
def test_a_file_of_something_else_is_refused_in_a_line(words, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text(words)
    assert main(["bench", "report", str(tmp_path / "x.jsonl")]) == 1
    assert "x.jsonl" in capsys.readouterr().err


def test_the_guides_figures_are_those_of_a_committed_file(tmp_path, monkeypatch):
    """The command is run as the section names it, on a copy, and changes nothing; without a file there is no figure."""
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    section = text[text.index(BEGIN) : text.index(END)]
    command = re.findall(r"written by `kinema (.*?)`", section)
    if not command:
        assert not list((ROOT / "docs").glob("gpu*.jsonl")), "make the section of it: kinema bench report"
        assert not re.search(r"\d", section), "a figure without its file"
        return
    words = shlex.split(command[0])
    for name in (word for word in words if word.endswith(".jsonl")):
        assert not any(line["kind"] == "run" and (line["dry"] or line["dirty"]) for line in read(ROOT / name))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "gpu.md").write_text(replaced(text, "nothing"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert (tmp_path / "docs" / "gpu.md").read_text(encoding="utf-8") == text
