"""The schema that all verbs share: written, read back, and refused where it is not what it says."""

import copy
import json
import shutil

import pytest
import torch

from kinema.bench.report import FIELDS, SCHEMA, model_of, provenance, read_report, timing, write_report
from kinema.errors import RequestError
from kinema.families.registry import open_folder
from kinema.ops import plan_ops, target_for


@pytest.fixture(scope="module")
def report():
    plan = plan_ops(target_for("cpu"), "reference")
    made = provenance("ops", ["bench", "ops", "--case", "a b"], plan, timed="a call")
    return {**made, "rows": [timing("one", [2.0, 1.0, 3.0, 2.0, 2.5]), {"name": "not timed"}]}


def test_a_report_comes_back_whole(report, tmp_path):
    write_report(str(tmp_path / "a.json"), report)
    assert read_report(str(tmp_path / "a.json")) == report


def test_it_says_what_ran_where(report):
    assert set(FIELDS) <= set(report) and report["schema"] == SCHEMA
    assert report["command"] == "kinema bench ops --case 'a b'"
    assert report["threads"] == torch.get_num_threads() and report["timed"] == "a call"
    assert report["commit"] is None or len(report["commit"]) == 40, "whether files differ is a field of its own"


def test_a_row_keeps_its_samples_and_what_they_say(report):
    row = report["rows"][0]
    assert row["samples"] == [2.0, 1.0, 3.0, 2.0, 2.5]
    assert row["seconds"]["median"] == 2.0 and (row["seconds"]["min"], row["seconds"]["max"]) == (1.0, 3.0)
    assert 1.0 <= row["seconds"]["low"] <= 2.0 <= row["seconds"]["high"] <= 3.0
    assert timing("few", [1.0])["seconds"]["low"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("schema"), "its schema is None, wanted 1"),
        (lambda r: r.update(schema=2), "its schema is 2, wanted 1: measure again"),
        (lambda r: r.pop("machine"), "its machine is None"),
        (lambda r: r.update(threads="2"), "its threads is '2'"),
        (lambda r: r["rows"].append({"name": "one"}), "a row's name is 'one'"),
        (lambda r: r["rows"].append({}), "a row's name is None"),
        (lambda r: r["rows"][0]["samples"].append(0), "the samples of 'one'"),
        (lambda r: r["rows"][0].update(samples=["x"]), "the samples of 'one'"),
    ],
)
def test_what_is_not_of_the_schema_is_refused(report, tmp_path, change, message):
    spoilt = copy.deepcopy(report)
    change(spoilt)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(spoilt))
    with pytest.raises(RequestError, match=message):
        read_report(str(file))


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(RequestError, match="No such file"):
        read_report(str(file))
    file.write_text("{")
    with pytest.raises(RequestError, match="it is not JSON"):
        read_report(str(file))
    file.write_text("[1]")
    with pytest.raises(RequestError, match="it holds a list, wanted an object"):
        read_report(str(file))


def test_a_model_is_known_by_its_configurations_wherever_it_lies(tiny, tmp_path):
    moved = shutil.copytree(tiny, tmp_path / "moved")
    here, there = model_of(tiny), model_of(moved)
    assert here["configuration"] == there["configuration"] and here["model"] == str(tiny)
    config = json.loads((moved / "vae" / "config.json").read_text())
    (moved / "vae" / "config.json").write_text(json.dumps({**config, "_diffusers_version": "9"}))
    assert model_of(moved) == there, "who wrote a folder does not matter"
    (moved / "vae" / "config.json").write_text(json.dumps({**config, "z_dim": 3}))
    assert model_of(moved)["configuration"] != there["configuration"]
    assert model_of(open_folder("sample").path)["model"] == "sample"
