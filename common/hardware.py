"""Which device, which number format, how long, how much memory - measured, and with the reason printed.

Units are the same everywhere in the course: MB is 10**6 bytes (a model, a process), GiB is 2**30 bytes (a machine).
Nothing here wakes CUDA up to measure it: a process that has touched CUDA can no longer fork workers.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common.errors import RoadmapError, unknown
from common.scale import scale

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch

MB = 1e6
GIB = 2**30
_EVERY = 0.01  # seconds between two looks at the memory: short enough for one layer's activations to be seen


def device(name: str | None = None, *, verbose: bool = True) -> torch.device:
    """The device to run on: CUDA where there is one, else the CPU, and one printed line that says why.

    Apple's ``mps`` is used only when asked for by name: several operations of the lessons (float64, the k-bit
    kernels, gloo) do not exist there.

    Args:
        name: ``"cuda"``, ``"cuda:1"``, ``"mps"`` or ``"cpu"`` to insist on one; None to let the machine decide.
        verbose: Whether to print the line.

    Raises:
        RoadmapError: If the device asked for is not on this machine. It is never replaced silently.
    """
    if name is None:
        found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        found = _checked(name)
    if verbose:
        why = "no CUDA device found; " if name is None and found.type == "cpu" else ""
        print(f"{found}: {why}{_describe(found)}, {scale()} scale")
    return found


def dtype(device: torch.device | str, *, verbose: bool = True) -> torch.dtype:
    """The number format to compute in on a device, and one printed line that says why.

    Args:
        device: Where the model runs, from :func:`device`.
        verbose: Whether to print the line.

    Returns:
        float32 on a CPU, bfloat16 on a GPU that computes it, float16 on any other.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        choice, why = torch.float32, "on a CPU without matrix units (AMX) half precision is about 3 times slower"
    elif kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        choice, why = torch.bfloat16, "half the memory at the range of float32, so no loss scaling is needed"
    else:
        choice, why = torch.float16, "this GPU has no bfloat16; scale the loss when training"
    if verbose:
        print(f"{str(choice).removeprefix('torch.')}: {why}")
    return choice


def set_seed(seed: int) -> None:
    """Seed Python, NumPy, and torch on every device.

    Args:
        seed: From 0 to 2**32 - 1, the range that NumPy accepts.

    Raises:
        RoadmapError: If the seed is not an integer in that range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise RoadmapError(f"The seed is {seed!r}; it must be an integer from 0 to {2**32 - 1}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds CUDA as well, at once or when it is first used


class Probe:
    """Time, peak memory and throughput of a block.

    The peak on the CPU is the process's resident memory, sampled in a thread; on GPUs it is the allocator's own
    peak, added up over the devices in use. Both are read even when the block raises.

    >>> with Probe("train") as probe:  # doctest: +SKIP
    ...     probe.count(input_ids.numel())
    >>> print(probe.summary())  # doctest: +SKIP
    train: 12.3 s, peak 812 MB (+240 MB), 4,412 tokens/s

    Attributes:
        label: What the summary line starts with.
        tokens: Tokens counted so far.
        peak_mb: Peak resident memory of this process during the block, in MB.
        grown_mb: The same above what was resident when the block began.
        gpu_mb: Peak memory allocated on the GPUs in MB, or None if the block used none.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._process = psutil.Process()
        self._reset()

    def _reset(self) -> None:
        self.tokens = 0
        self.peak_mb = self.grown_mb = 0.0
        self.gpu_mb: float | None = None
        self._start: float | None = None
        self._end: float | None = None

    def __enter__(self) -> Self:
        self._reset()
        if torch.cuda.is_initialized():  # otherwise every counter is still at zero
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        self._floor_mb = self._resident_mb()
        self.peak_mb = self._floor_mb
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        synchronize()
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            synchronize()
        finally:  # after a CUDA error the queue cannot be waited for; the thread must end all the same
            self._end = time.perf_counter()
            self._stop.set()
            self._thread.join()
            self._look()
        if torch.cuda.is_initialized():
            self.gpu_mb = sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())) / MB

    def _resident_mb(self) -> float:
        return self._process.memory_info().rss / MB

    def _look(self) -> None:
        self.peak_mb = max(self.peak_mb, self._resident_mb())
        self.grown_mb = self.peak_mb - self._floor_mb

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self._look()

    def count(self, tokens: int) -> None:
        """Add tokens that the block has processed."""
        self.tokens += int(tokens)

    @property
    def seconds(self) -> float:
        """Seconds in the block; inside it, seconds so far."""
        if self._start is None:
            return 0.0
        return (self._end or time.perf_counter()) - self._start

    @property
    def tokens_per_second(self) -> float:
        """Counted tokens over seconds; 0 before the block."""
        return self.tokens / self.seconds if self._start is not None else 0.0

    def summary(self) -> str:
        """One line: seconds, peak memory, and tokens per second if any were counted."""
        parts = [f"{self.seconds:.1f} s", f"peak {self.peak_mb:,.0f} MB (+{self.grown_mb:,.0f} MB)"]
        if self.gpu_mb is not None:
            parts.append(f"GPU peak {self.gpu_mb:,.0f} MB")
        if self.tokens:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        return (f"{self.label}: " if self.label else "") + ", ".join(parts)


def synchronize() -> None:
    """Wait for queued CUDA work; nothing on a machine, or in a process, without it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def time_per_call(fn: Callable[[], Any], *, repeats: int = 10, warmup: int = 2) -> float:
    """Median seconds of one call, which an occasional interruption does not move as it moves the mean.

    Args:
        fn: What to time, without arguments.
        repeats: Timed calls, at least 1.
        warmup: Calls before, not timed: caches fill, kernels compile.

    Raises:
        RoadmapError: If there is nothing to time.
    """
    if repeats < 1 or warmup < 0:
        raise RoadmapError(f"time_per_call needs repeats >= 1 and warmup >= 0, not {repeats} and {warmup}.")
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        fn()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def parameters(model: torch.nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; tied ones count once, and 4-bit ones by their logical shape, not their packed one."""
    chosen = (p for p in model.parameters() if p.requires_grad or not trainable_only)
    return sum(_logical_size(p) for p in chosen)


def size_mb(model: torch.nn.Module) -> float:
    """Memory of a model's parameters and buffers in MB; for k-bit weights with the scales they cannot do without."""
    tensors = [*model.parameters(), *model.buffers()]
    for p in model.parameters():
        if (state := getattr(p, "quant_state", None)) is not None:  # 4-bit (bitsandbytes)
            tensors += [value for value in state.as_dict().values() if isinstance(value, torch.Tensor)]
    for module in model.modules():  # 8-bit (bitsandbytes): the first forward moves the scales from the weight to the state
        holders = (getattr(module, "weight", None), getattr(module, "state", None))
        tensors += [scales for holder in holders if (scales := getattr(holder, "SCB", None)) is not None]
    return sum(t.numel() * t.element_size() for t in tensors) / MB


def machine() -> str:
    """The processor in words, for tables: the GPU's name, or the CPU's model and cores. Never the host's name."""
    if torch.cuda.is_available():
        return _describe(torch.device("cuda"))
    return f"{_cpu_model()}, {cores()} cores"


def cores() -> int:
    """CPU cores that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def process_peak_mb() -> float:
    """Peak resident memory of this process since it began, in MB.

    On Linux from ``VmHWM``: ``getrusage`` would also count the process that started this one, since its maximum
    survives ``exec``.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset / MB
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if platform.system() == "Darwin" else 1024) / MB


def process_seconds() -> float:
    """Seconds since this process began, imports included."""
    return max(0.0, time.time() - psutil.Process().create_time())


def _checked(name: str) -> torch.device:
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("cpu", "cuda", "cuda:1", "mps")) from None
    if wanted.type not in ("cpu", "cuda", "mps"):
        raise unknown("device", name, ("cpu", "cuda", "cuda:1", "mps"))
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise RoadmapError(
                f"Device {name!r} was asked for, but torch finds no CUDA device; use device() to run on the CPU, "
                "or see what is missing with: python -m common doctor"
            )
        if (wanted.index or 0) >= (there := torch.cuda.device_count()):
            raise RoadmapError(f"Device {name!r} was asked for, but this machine has {there}: the last is 'cuda:{there - 1}'.")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise RoadmapError("Device 'mps' was asked for, but it needs macOS on Apple silicon; use device() to run on the CPU.")
    return wanted


def _describe(found: torch.device) -> str:
    if found.type == "cuda":
        card = torch.cuda.get_device_properties(found)
        return f"{card.name}, {card.total_memory / GIB:.0f} GiB"
    return f"{cores()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].replace("(R)", "").replace("(TM)", "").split())
    return platform.processor() or platform.machine()


def _logical_size(p: torch.nn.Parameter) -> int:
    state = getattr(p, "quant_state", None)
    return p.numel() if state is None else int(np.prod(state.shape))
