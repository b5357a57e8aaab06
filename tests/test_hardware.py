"""Device and dtype choice, seeding, probes and sizes; a CUDA device is imitated where a branch needs one."""

import random
import time
from types import SimpleNamespace

from common import hardware
from common.errors import RoadmapError
from common.hardware import Probe

import numpy as np
import psutil
import pytest
import torch


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("ROADMAP_SCALE", "tiny")


@pytest.fixture
def cuda(monkeypatch):
    """Two imitated GPUs that have been used; returns the list of calls made to them."""
    calls = []
    monkeypatch.setenv("ROADMAP_SCALE", "full")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="Test GPU", total_memory=24 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: calls.append(f"reset {index}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 3e6 * (index + 1))
    return calls


def test_without_a_gpu_the_cpu_is_chosen_and_the_reason_printed(no_cuda, capsys):
    assert hardware.device() == torch.device("cpu")
    line = capsys.readouterr().out
    assert line.startswith("cpu: no CUDA device found; ") and line.endswith("GiB, tiny scale\n") and line.count("\n") == 1
    assert f"{hardware.cores()} cores" in line


def test_asking_for_the_cpu_does_not_claim_that_a_gpu_is_missing(cuda, capsys):
    assert hardware.device("cpu") == torch.device("cpu")
    assert "no CUDA" not in capsys.readouterr().out


def test_a_gpu_is_preferred_and_named(cuda, capsys):
    assert hardware.device() == torch.device("cuda")
    assert capsys.readouterr().out == "cuda: Test GPU, 24 GiB, full scale\n"
    assert hardware.device("cuda:1", verbose=False) == torch.device("cuda:1")
    assert capsys.readouterr().out == ""
    assert hardware.machine() == "Test GPU, 24 GiB"


def test_a_missing_gpu_is_an_error_and_never_the_cpu(no_cuda):
    with pytest.raises(RoadmapError, match=r"torch finds no CUDA device.*python -m common doctor"):
        hardware.device("cuda")


def test_a_gpu_beyond_the_last_is_an_error(cuda):
    with pytest.raises(RoadmapError, match="this machine has 2: the last is 'cuda:1'"):
        hardware.device("cuda:2")


def test_mps_is_used_only_when_asked_for(no_cuda, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.device(verbose=False).type == "cpu"
    assert hardware.device("mps").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RoadmapError, match="Apple silicon"):
        hardware.device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "xla"])
def test_an_unknown_device_lists_the_known_ones(no_cuda, name):
    with pytest.raises(RoadmapError, match=r"There is no device named .*cpu, cuda"):
        hardware.device(name)


def test_dtype_follows_the_device(cuda, monkeypatch, capsys):
    assert hardware.dtype(torch.device("cpu")) is torch.float32
    assert "3 times slower" in capsys.readouterr().out
    assert hardware.dtype("cuda") is torch.bfloat16
    assert capsys.readouterr().out.startswith("bfloat16: ")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert hardware.dtype("cuda", verbose=False) is torch.float16  # emulated bfloat16 is no reason to choose it
    assert capsys.readouterr().out == ""


def test_the_same_seed_gives_the_same_numbers():
    def draw():
        hardware.set_seed(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(RoadmapError, match="integer from 0 to 4294967295"):
        hardware.set_seed(seed)


def test_probe_sees_a_peak_that_is_gone_at_the_end(no_cuda):
    with Probe("block") as probe:
        before = psutil.Process().memory_info().rss / hardware.MB
        block = np.ones(20_000_000)  # 160 MB, touched
        time.sleep(0.06)
        del block
        probe.count(300)
        probe.count(200)
    assert 150 < probe.grown_mb < 400 and probe.peak_mb > before + 150
    assert probe.seconds >= 0.06 and probe.gpu_mb is None
    assert probe.tokens_per_second == pytest.approx(500 / probe.seconds)
    assert probe.summary().startswith("block: ") and probe.summary().endswith("tokens/s")
    assert not probe._thread.is_alive()


def test_probe_stops_its_clock_and_starts_anew(no_cuda):
    probe = Probe()
    assert probe.seconds == 0.0 and probe.tokens_per_second == 0.0
    with probe:
        probe.count(10)
        assert probe.seconds > 0
    first = probe.seconds
    time.sleep(0.01)
    assert probe.seconds == first
    with probe:
        pass
    assert probe.tokens == 0 and probe.seconds < 1
    assert "tokens" not in probe.summary() and not probe.summary().startswith(":")


def test_probe_keeps_its_figures_when_the_block_raises(no_cuda):
    with pytest.raises(ZeroDivisionError), Probe() as probe:
        raise ZeroDivisionError
    assert probe.seconds > 0 and probe.peak_mb > 0 and not probe._thread.is_alive()


def test_probe_measures_every_gpu_and_waits_for_it(cuda):
    with Probe() as probe:
        pass
    assert cuda == ["reset 0", "reset 1", "synchronize", "synchronize"]
    assert probe.gpu_mb == pytest.approx(9.0) and "GPU peak 9 MB" in probe.summary()


def test_probe_ends_its_thread_when_the_gpu_has_failed(cuda, monkeypatch):
    probe = Probe().__enter__()

    def fail():
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        probe.__exit__(None, None, None)
    assert not probe._thread.is_alive()


def test_time_per_call_is_a_median_and_skips_the_warm_up(no_cuda):
    calls = []

    def fn():
        calls.append(None)
        time.sleep(0.3 if len(calls) in (1, 3) else 0.002)

    assert 0.002 <= hardware.time_per_call(fn, repeats=5, warmup=1) < 0.05  # the mean would be over 0.06
    assert len(calls) == 6


def test_time_per_call_waits_for_the_gpu(cuda):
    hardware.time_per_call(lambda: None, repeats=3, warmup=0)
    assert cuda == ["synchronize"] * 6


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 0), (1, -1)])
def test_time_per_call_refuses_to_time_nothing(repeats, warmup):
    with pytest.raises(RoadmapError, match="repeats >= 1"):
        hardware.time_per_call(lambda: None, repeats=repeats, warmup=warmup)


def test_tied_parameters_count_once():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10))
    assert hardware.parameters(model) == 40 + 40 + 10
    model[1].weight = model[0].weight
    assert hardware.parameters(model) == 40 + 10
    model[0].weight.requires_grad_(False)
    assert hardware.parameters(model, trainable_only=True) == 10


def test_size_counts_parameters_and_buffers_in_bytes():
    model = torch.nn.BatchNorm1d(8)  # weight, bias, mean, variance: 32 x 4 bytes; one int64 counter
    assert hardware.size_mb(model) == pytest.approx((32 * 4 + 8) / 1e6)
    assert hardware.size_mb(torch.nn.Linear(4, 4, bias=False).half()) == pytest.approx(32 / 1e6)


def test_k_bit_weights_count_by_logical_shape_and_with_their_scales():
    packed = torch.nn.Linear(8, 8, bias=False)
    packed.weight = torch.nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    packed.weight.quant_state = SimpleNamespace(shape=(8, 8), as_dict=lambda: {"absmax": torch.ones(2), "type": "nf4"})
    assert hardware.parameters(packed) == 64 and hardware.size_mb(packed) == pytest.approx((32 + 8) / 1e6)
    eight = torch.nn.Linear(8, 8, bias=False)
    eight.weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    eight.weight.SCB = torch.ones(8)
    assert hardware.size_mb(eight) == pytest.approx((64 + 32) / 1e6)


def test_the_machine_is_described_without_its_name(no_cuda):
    import platform

    assert hardware.machine().endswith(f"{hardware.cores()} cores")
    assert platform.node() not in hardware.machine()


def test_the_fall_backs_of_other_systems(no_cuda, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "Path", lambda name: tmp_path / "absent")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert hardware.cores() >= 1 and hardware.machine()
    assert hardware.process_peak_mb() >= psutil.Process().memory_info().rss / hardware.MB * 0.5
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=5e6)))
    assert hardware.process_peak_mb() == pytest.approx(5.0)


def test_the_process_has_a_peak_and_an_age(no_cuda):
    assert hardware.process_peak_mb() >= psutil.Process().memory_info().rss / hardware.MB * 0.99
    assert 0 < hardware.process_seconds() < 3600
