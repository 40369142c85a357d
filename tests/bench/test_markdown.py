"""bench report: the tables and plots of given reports."""

import pytest

from kinema.bench.intervals import Estimate
from kinema.bench.markdown import table
from kinema.bench.plots import scaling_of
from kinema.bench.report import provenance, timing, write_report
from kinema.bench.rounds import say_if_few
from kinema.cli.main import main
from kinema.ops import plan_ops, target_for

NARROW = Estimate(2.0, 1.98, 2.02).as_dict()


@pytest.fixture
def written(tmp_path):
    plan = plan_ops(target_for("cpu"), "reference")

    def write(name, benchmark, rows, **more):
        report = {**provenance(benchmark, ["bench", benchmark], plan, timed="a call"), "rows": rows, **more}
        write_report(str(tmp_path / name), report)
        return str(tmp_path / name)

    return write


def test_a_row_has_what_it_has_and_a_column_what_any_row_has():
    timed = timing("a | b", [2e-3] * 5) | {"flops": 4e6, "of_peak": 0.25, "than_reference": NARROW}
    lines = table([timed, {"name": "c", "refused": "wrong: errs"}])
    assert lines[0] == "|  | median | 95 % interval | GFLOP/s | of the FMA peak | against the reference |"
    assert lines[2] == "| a / b | 2 ms | 2 ms to 2 ms | 2.0 | 25% | 2.00x (1.98 to 2.02) |"
    assert lines[3] == "| c | wrong: errs |  |  |  |  |"


def test_a_ratio_that_noise_swallowed_is_not_in_the_table():
    row = timing("a", [1.0] * 5) | {"than_exact": Estimate(1.1, 0.8, 1.5).as_dict()}
    assert table([row])[2].endswith("| too noisy (0.80 to 1.50) |")


def test_the_page_says_what_was_timed(written, capsys):
    assert main(["bench", "report", written("a.json", "ops", [timing("one", [0.5] * 5)])]) == 0
    page = capsys.readouterr().out
    assert "`kinema bench ops`" in page and "Timed: a call." in page and "| one | 500 ms |" in page


def model_rows(seconds):
    return [timing("transformer, 8 tokens", [seconds] * 5) | {"flops": 10}]


def test_plots_are_drawn_where_there_is_enough_and_are_the_same_again(written, tmp_path):
    pytest.importorskip("matplotlib")
    rate = {"per_second": 1e11, "how": "x"}
    peaks = {"flops": {"fp32": rate}, "copy": {"per_second": 1e10, "how": "x"}}
    op = timing("op", [1e-3] * 5) | {"flops": 10**7, "bytes": 10**6, "implementation": "cpu"}
    lossy = timing("int8", [1.0] * 5) | {"psnr": 40.0, "than_exact": NARROW}
    files = [
        written("ops.json", "ops", [op], peaks=peaks),
        written("small.json", "model", model_rows(1.0), grid=[2, 2, 2]),
        written("large.json", "model", model_rows(5.0), grid=[4, 4, 4]),
        written("lossy.json", "fidelity", [lossy]),
        written("peers.json", "peers", [timing("kinema", [1.0] * 5), timing("diffusers", [2.0] * 5)]),
        written("others.json", "peers", [timing("kinema", [1.0] * 5)]),
        written("failed.json", "ops", [{"name": "linear", "failed": "out of memory"}]),
    ]
    page, plots = tmp_path / "page.md", tmp_path / "plots"
    command = ["bench", "report", *files, "-o", str(page), "--plots", str(plots)]
    assert main(command) == 0
    drawn = {path.name: path.read_bytes() for path in plots.iterdir()}
    models = {"model.svg", "model-2.svg"}
    assert set(drawn) == {"roofline-ops.svg", "fidelity.svg", "scaling.svg", "peers.svg", "peers-2.svg", *models}
    assert all(f"(plots/{name})" in page.read_text() for name in drawn)
    assert "No plot of `kinema bench ops`: nothing in it was timed (out of memory)." in page.read_text()
    assert "Roofline of kinema bench ops" in page.read_text()
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in plots.iterdir()} == drawn


def test_scaling_is_in_order_of_tokens(tmp_path):
    def report(grid, seconds):
        return {"benchmark": "model", "grid": grid, "rows": model_rows(seconds), "target": {"precision": "fp32"}}

    found = scaling_of([report([4, 4, 4], 5.0), report([2, 2, 2], 1.0), {"benchmark": "ops"}])
    assert found == {"transformer, fp32": [(8, 1.0), (64, 5.0)]}


def test_few_rounds_are_said_before_they_are_measured(capsys):
    say_if_few(5)
    assert capsys.readouterr().err == ""
    say_if_few(4)
    assert "--rounds 4: medians only, an interval or a ratio needs 5 or more" in capsys.readouterr().err
