"""bench samplers: which samplers a model has, what is counted, and a small run."""

import json

import pytest

from kinema import schedulers
from kinema.bench.samplers import OWN, samplers_of, shares
from kinema.cli.main import main
from kinema.sample.adherence import Verdict

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
SDE = {"_class_name": "DPMSolverMultistepScheduler", **FLOW, "algorithm_type": "sde-dpmsolver++"}


def test_a_stochastic_sampler_is_compared_with_less_of_its_noise_and_with_others():
    found = samplers_of(schedulers.core_from_config(SDE))
    assert list(found) == [OWN, "noise in steps up to 0.45", "no noise", "euler", "unipc"]
    assert found["noise in steps up to 0.45"].config.noise_max_step == 0.45 and not found["no noise"].has_noise
    assert found["unipc"].config.flow_shift == found["euler"].config.shift == 5.0
    unipc = schedulers.core_from_config({"_class_name": "UniPCMultistepScheduler", **FLOW})
    assert list(samplers_of(unipc)) == [OWN, "euler"]


def test_shares_count_each_part_and_what_changed():
    def verdict(subject, colour, motion):
        return Verdict(None, None, subject, colour, motion, None, None)

    row = shares(
        [verdict(True, True, True), verdict(True, False, True), verdict(True, True, None)], [False, True, True]
    )
    assert (row["right"], row["of"], row["subject"], row["colour"], row["motion"]) == (2, 3, 3, 2, 3)
    assert row["changed"]["lost"] == 1 and row["changed"]["won"] == 1


def test_bench_samplers(capsys, tmp_path):
    file = tmp_path / "report.json"
    command = ["bench", "samplers", "--prompts", "2", "--steps", "1", "--steps", "2", "--sampler", "no noise"]
    assert main([*command, "--threads", "1", "--json", str(file)]) == 0
    printed, rows = capsys.readouterr().out, json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == [f"{name}, {n} steps" for n in (1, 2) for name in (OWN, "no noise")]
    assert all(row["of"] == 2 and row["sampler"] in printed for row in rows)
    assert rows[0]["changed"] == {"lost": 0, "won": 0, "p": 1.0}


@pytest.mark.parametrize(
    ("words", "said"), [(("--sampler", "magic"), "no sampler 'magic'"), (("--steps", "0"), "at least one")]
)
def test_what_cannot_be_compared_is_refused(capsys, words, said):
    assert main(["bench", "samplers", *words]) == 1
    assert said in capsys.readouterr().err
