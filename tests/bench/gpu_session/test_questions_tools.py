"""What compute-sanitizer and ncu print, read from stored samples, well-formed and not."""

import pytest

from kinema.bench.gpu_session import ncu, sanitizer
from kinema.bench.gpu_session.programs import found, run
from kinema.bench.gpu_session.sanitizer import SAMPLES


def sample(name):
    return (SAMPLES / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["memcheck_clean", "racecheck_clean"])
def test_nothing_found_is_nothing_found(name):
    found = sanitizer.parse(sample(name))
    assert found.finished and found.errors == 0 and found.warnings == 0 and not found.findings


def test_errors_of_memcheck_have_kernels_and_addresses():
    found = sanitizer.parse(sample("memcheck_errors"))
    assert (found.errors, found.warnings) == (3, 0) and len(found.findings) == 3
    read, write, hit = found.findings
    assert read.what == "Invalid __global__ read of size 16 bytes" and read.kernel == "attention_kernel"
    assert read.details[2] == "Address 0x7f6510c01c00 is out of bounds"
    assert read.details[3].startswith("and is 1 bytes after")
    assert write.kernel == "_norm_modulate" and "misaligned" in write.details[2]
    assert "CUDA_ERROR_LAUNCH_FAILED" in hit.what and hit.kernel is None


def test_hazards_of_racecheck_are_errors_and_warnings():
    found = sanitizer.parse(sample("racecheck_hazards"))
    assert (found.errors, found.warnings) == (1, 1)
    first, second = found.findings
    assert first.kernel == "linear_kernel" and first.details == (
        "and Read access at linear_kernel+0x100 in triton_kernel.py:51 [508 hazards]",
    )
    assert second.kernel == "conv3d_kernel" and len(second.details) == 2


@pytest.mark.parametrize("name", ["memcheck_cut", "memcheck_unsupported"])
def test_a_tool_that_did_not_come_to_its_end_says_nothing_of_errors(name):
    assert not sanitizer.parse(sample(name)).finished
    assert not sanitizer.parse("").finished


@pytest.mark.parametrize(
    ("line", "errors", "warnings"),
    [
        ("========= ERROR SUMMARY: 1 error", 1, 0),
        ("========= RACECHECK SUMMARY: 5 hazards displayed (2 errors, 3 warnings)", 2, 3),
    ],
)
def test_a_summary_is_read_in_one_and_in_many(line, errors, warnings):
    found = sanitizer.parse(f"right\n{line}\nmore")
    assert (found.errors, found.warnings) == (errors, warnings)


def test_findings_that_are_alike_are_one(tmp_path):
    text = sample("memcheck_errors").replace("by thread (63,0,0)", "by thread (62,0,0)")
    reports = {}
    session = type("S", (), {"report": lambda self, case, **fields: reports.update({case: fields})})()
    twice = text.split("========= ERROR")[0] + sample("memcheck_errors")
    sanitizer._report("memcheck", session, sanitizer.Said(0, twice))
    (fields,) = reports.values()
    assert [f["count"] for f in fields["findings"]] == [2, 2, 2]
    assert fields["kernels_right"] == ["linear"] and fields["kernels_wrong"] == ["attention"]


def test_a_tool_that_does_not_run_is_skipped():
    skipped = []
    session = type("S", (), {"skip": lambda self, case, reason: skipped.append((case, reason))})()
    sanitizer._report("memcheck", session, sanitizer.Said(1, sample("memcheck_unsupported")))
    assert skipped[0][0] == "memcheck" and "before first instrumented" in skipped[0][1]


def test_counters_are_numbers_by_section():
    profile = ncu.parse(sample("ncu_details"))
    assert profile.refused is None and [launch.kernel for launch in profile.launches] == [
        "attention_kernel",
        "linear_kernel",
    ]
    attention, linear = profile.launches
    light = attention.metrics["GPU Speed Of Light Throughput"]
    assert light["Elapsed Cycles"] == (25238118.0, "cycle") and light["Duration"] == (14.39, "ms")
    assert attention.grid == "(6144, 1, 1)"
    assert linear.metrics["Occupancy"]["Cluster Occupancy"] == ("n/a", "%")
    (utilised, first), (stalled, second) = attention.advice
    assert "does not reach its peak" in utilised and first == 38.48
    assert stalled.endswith('waiting for "wgmma".') and second == 52.1
    assert linear.advice[0][1] is None


def test_a_report_has_the_weightiest_advice_first():
    fields = ncu.as_fields(ncu.parse(sample("ncu_details")).launches[0], advice=1)
    assert [said["speedup_percent"] for said in fields["advice"]] == [52.1]
    assert fields["metrics"]["Launch Statistics"] == {"Registers Per Thread, register/thread": 168.0}


def test_counters_that_are_not_permitted_are_the_reason():
    profile = ncu.parse(sample("ncu_no_permission"))
    assert not profile.launches and profile.not_permitted and "does not have permission" in profile.refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [(sample("ncu_nothing"), "No kernels were profiled"), ("", "said nothing"), ("ncu: command line wrong", "wrong")],
)
def test_without_launches_there_is_a_reason(text, reason):
    profile = ncu.parse(text)
    assert not profile.launches and not profile.not_permitted and reason in profile.refused


def test_a_table_that_is_cut_short_gives_what_it_has():
    text = sample("ncu_details")
    assert len(ncu.parse(text[: text.index('"1","4242"') + 30]).launches) == 1


def test_a_program_is_run_and_stopped():
    shell = found("sh")
    assert shell is not None and found("no-such-program-anywhere") is None
    said = run([shell, "-c", "echo out; echo err >&2; exit 3"], 10.0)
    assert said.code == 3 and sorted(said.text.split()) == ["err", "out"]
    stopped = run([shell, "-c", "echo begun; exec sleep 30"], 0.5)
    assert stopped.code is None and "begun" in stopped.text


def test_a_program_finds_what_this_process_imports():
    import sys

    said = run([sys.executable, "-c", "import kinema, os; print(os.environ['X'])"], 60.0, {"X": "given"})
    assert said.code == 0 and said.text.strip() == "given"
