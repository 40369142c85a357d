"""The cores that a process may use: its affinity mask and, of made-up files, the quotas of its control groups."""

import os

import pytest

from kinema.ops.common import cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(groups of the process, {file: its text}): then how many cores it may use, of eight in its mask."""

    def usable(groups, files, mask=8):
        (tmp_path / "self").mkdir(exist_ok=True)
        (tmp_path / "self" / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        monkeypatch.setattr(cores, "PROC", tmp_path)
        monkeypatch.setattr(cores, "GROUPS", tmp_path / "groups")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mask)), raising=False)
        cores._cores.cache_clear()
        return cores.usable_cores()

    yield usable
    cores._cores.cache_clear()


V2, V1 = ["0::/kinema/run"], ["5:memory:/kinema/run", "4:cpu,cpuacct:/kinema/run", "0::/"]


def v1(quota, period, where="cpu/kinema/run"):
    return {f"{where}/cpu.cfs_quota_us": quota, f"{where}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        (V2, {"kinema/run/cpu.max": "200000 100000"}, 2),
        (V2, {"kinema/run/cpu.max": "250000 100000"}, 3),  # what is left of the third is used
        (V2, {"kinema/run/cpu.max": "50000 100000"}, 1),
        (V2, {"kinema/run/cpu.max": "max 100000"}, 8),
        (V2, {"kinema/run/cpu.max": "1600000 100000"}, 8),
        (V2, {"kinema/run/cpu.max": "max 100000", "kinema/cpu.max": "300000 100000"}, 3),  # that of all its runs
        (V2, {"kinema/run/cpu.max": "500000 100000", "cpu.max": "400000 100000"}, 4),
        (V2, {"cpu.max": "400000 100000"}, 4),  # a container that sees the host's path, and its own group as the root
        (V2, {}, 8),
        (V1, v1(200000, 100000), 2),
        (V1, v1(-1, 100000), 8),
        (V1, {**v1(-1, 100000), **v1(75000, 25000, "cpu/kinema")}, 3),
        (V1, v1(300000, 100000, "cpu"), 3),
        (["4:cpuset:/", "3:cpuacct:/"], v1(100000, 100000, "cpu"), 8),  # without the controller of time
        ([], {"cpu.max": "100000 100000"}, 8),
        *((V2, {"kinema/run/cpu.max": odd}, 8) for odd in ("", "max", "1 2 3", "many 100000", "100000 0", "1e5 10")),
    ],
)
def test_a_quota_is_followed(machine, groups, files, wanted):
    assert machine(groups, files) == wanted


def test_the_mask_is_followed(machine):
    assert machine(V2, {"kinema/run/cpu.max": "400000 100000"}, mask=3) == 3
    assert machine(V2, {}, mask=1) == 1


def test_a_machine_without_such_files(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "PROC", tmp_path)
    cores._cores.cache_clear()
    assert 1 <= cores.usable_cores() <= (os.cpu_count() or 1)
    cores._cores.cache_clear()


def test_limits_may_change_while_it_runs(machine, monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr("kinema.ops.common.cores.time.monotonic", lambda: seconds[0])
    assert machine(V2, {"kinema/run/cpu.max": "200000 100000"}) == 2
    (cores.GROUPS / "kinema" / "run" / "cpu.max").write_text("400000 100000")
    seconds[0] += 0.5
    assert cores.usable_cores() == 2, "looked up once a second"
    seconds[0] += 0.5
    assert cores.usable_cores() == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_the_mask_of_this_process():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        cores._cores.cache_clear()
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
        cores._cores.cache_clear()
