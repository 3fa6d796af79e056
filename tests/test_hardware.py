"""What `model.dtype: auto` means, by flags and by measurement."""

import json

import pytest

from llmrl import hardware


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A machine that nobody has measured yet, without a GPU."""
    monkeypatch.setenv("LLMRL_CACHE", str(tmp_path))
    monkeypatch.setattr(hardware, "GPU_DEVICES", ())
    cached = (hardware.best_precision, hardware.bf16_speed, hardware.gpus)
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


def measured(folder, ratio):
    """Leave `ratio` in the cache as what was measured on this machine."""
    hardware.bf16_speed()
    file = folder / "bf16-speed.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: ratio}))
    hardware.bf16_speed.cache_clear()


@pytest.mark.parametrize(
    ("flags", "ratio", "dtype", "reason"),
    [
        ({"avx2", "fma"}, 9.0, "float32", "no bfloat16 in hardware"),  # the flags decide, nothing is measured
        ({"avx512f", "avx512_bf16"}, 4.2, "bfloat16", "4.2 times as fast"),
        ({"avx512f", "avx512_bf16"}, 0.19, "float32", "0.19 times"),  # the flag lies: this torch makes no use of it
        ({"amx_bf16"}, 1.1, "float32", "1.1 times"),  # too little to pay for coarse rounding
        ({"asimd", "bf16"}, 2.0, "bfloat16", "2.0 times"),
        (set(), 0.25, "float32", "0.25 times"),  # no flags told: measured
    ],
)
def test_auto_is_decided_by_flags_and_where_they_may_lie_by_a_measurement(fresh, flags, ratio, dtype, reason):
    measured(fresh, ratio)
    found = hardware.cpu_precision(frozenset(flags))
    assert found.dtype == dtype
    assert reason in found.reason


def test_the_choice_is_the_faster_one_of_a_longer_timing_or_close_to_it():
    """The short measurement against twenty longer products of another shape, with room for a busy machine."""
    import time

    import torch

    def seconds(dtype):
        x, weight = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        times = []
        for _ in range(20):
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            times.append(time.perf_counter() - started)
        return min(times)

    slow, fast = seconds(torch.bfloat16), seconds(torch.float32)
    ratio = hardware.measure_bf16_speed()
    if slow > 3 * fast:
        assert ratio < 1
    elif fast > 3 * slow:
        assert ratio > 1


def test_a_measurement_is_kept_on_disk_and_a_damaged_one_is_made_again(fresh):
    first = hardware.bf16_speed()
    file = fresh / "bf16-speed.json"
    assert list(json.loads(file.read_text()).values()) == [pytest.approx(first, abs=1e-3)]
    file.write_text("{")
    hardware.bf16_speed.cache_clear()
    hardware.bf16_speed()
    assert len(json.loads(file.read_text())) == 1


def test_an_explicit_precision_is_warned_about_with_its_factor_where_it_is_slow(fresh):
    measured(fresh, 0.2)
    assert "5.0 times as long" in hardware.warning_for("bfloat16")
    assert hardware.warning_for("float32") is None
    measured(fresh, 3.5)
    assert "3.5 times as long" in hardware.warning_for("float32")
    assert hardware.warning_for("bfloat16") is None
    measured(fresh, 1.3)
    assert hardware.warning_for("float32") is None  # not worth a line
    assert hardware.warning_for("float16") is None  # never measured


@pytest.mark.parametrize(
    ("files", "membership", "cores"),
    [
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, "0::/a/b\n", 1.5),
        ({"cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, "0::/a\n", 0.5),
        ({"a/cpu.max": "max 100000"}, "0::/a\n", None),
        (
            {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"},
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            2.5,
        ),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/a\n", None),
        ({}, "", None),
    ],
)
def test_the_tightest_quota_of_a_process_and_the_groups_around_it_counts(tmp_path, files, membership, cores):
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text(membership)
    assert hardware.cpu_quota(tmp_path / "fs", tmp_path / "cgroup") == cores


@pytest.mark.parametrize(
    ("quota", "nice", "load", "may", "left"),
    [(None, 0, 9.0, 4, 4), (1.5, 0, 9.0, 2, 2), (None, 5, 2.6, 4, 1), (0.2, 5, 9.0, 1, 1)],
)
def test_threads_follow_affinity_quota_and_nice(monkeypatch, quota, nice, load, may, left):
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(hardware.os, "nice", lambda more: nice)
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
    assert (hardware.cores(), hardware.cores_left()) == (may, left)
