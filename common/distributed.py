"""Several processes from one lesson or command: started, watched, their results put together without counting twice.

Readers start ranks with ``torchrun``; so does :func:`launch`, on a script that lies in a file. What it adds is what a
notebook lacks: rank 0's output as it comes, one sentence when a rank dies, a time limit, and no process left behind.
In a script, :func:`start` joins the group (nccl where each rank has a GPU, else gloo); without torchrun there is one rank.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import RoadmapError
from common.paths import ROOT

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist

_MARK = "ROADMAP_LAUNCH"  # an environment variable by which a launch knows all its processes, orphans included
_LINES = 8  # of a dead rank's stderr


@dataclass(frozen=True)
class Launched:
    """A launch that ended well.

    Attributes:
        output: What each rank wrote to stdout, by rank.
        errors: What each rank wrote to stderr, by rank: warnings, as no rank failed.
        seconds: Wall-clock time, the imports of every rank included.
    """

    output: tuple[str, ...]
    errors: tuple[str, ...]
    seconds: float


# ------------------------------------------------------------------------------------------------ inside a rank


def start(timeout: float = 600.0) -> torch.device:
    """Join the process group that torchrun describes in the environment, and choose this rank's device.

    Args:
        timeout: Seconds after which a collective that some rank never joins raises an error.

    Returns:
        ``cuda:LOCAL_RANK`` with the backend nccl, or ``cpu`` with gloo. Without torchrun: one device, no group.

    Raises:
        RoadmapError: If there are GPUs, but fewer than ranks on this machine.
    """
    local, has_gpu = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    if has_gpu and local >= torch.cuda.device_count():
        raise RoadmapError(
            f"Rank {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Start no more processes "
            "than GPUs, or run all of them on the CPU with CUDA_VISIBLE_DEVICES=''."
        )
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if has_gpu else "gloo", timeout=datetime.timedelta(seconds=timeout))
    return device


def stop() -> None:
    """Leave the process group, if there is one; the last line of a script.

    Gloo's threads outlive the group where DistributedDataParallel holds on to it. A thread that still holds a tensor when
    Python shuts down asks for a lock that is gone. The rank is then aborted although its work is done
    (pytorch/pytorch#179291). A short sleep lets every thread release what it holds.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)


def rank() -> int:
    """This process's number, from 0; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def print0(*values: object, **options: Any) -> None:
    """``print`` on rank 0, at once; silence on the others, which would only say it again."""
    if rank() == 0:
        print(*values, **{"flush": True, **options})


def gather(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Put the results of all ranks together, each sample once and in order, however the samples were split.

    A sampler that pads its last round gives a sample to two ranks; both answers carry the same number, and one is kept.

    Args:
        values: One result a sample of this rank, shape ``(mine, ...)``; ``mine`` may differ from rank to rank.
        indices: The samples' numbers in the whole data set, shape ``(mine,)``.

    Returns:
        On every rank the same tensor of shape ``(samples, ...)``, in the order of the numbers 0, 1, 2 ...

    Raises:
        RoadmapError: If the shapes do not fit, or a number between 0 and the largest is on no rank.
    """
    if indices.ndim != 1 or len(values) != len(indices):
        raise RoadmapError(f"gather needs one number a result, not {tuple(indices.shape)} numbers for {len(values)} results.")
    places = _gather_uneven(indices.to(values.device, torch.long))
    everything = _gather_uneven(values)
    total = int(places.max()) + 1 if len(places) else 0
    if missing := total - len(places.unique()):
        raise RoadmapError(f"{missing} of {total} samples are on no rank; does every rank walk through its whole share?")
    whole = everything.new_empty((total, *everything.shape[1:]))
    whole[places] = everything
    return whole


def _gather_uneven(mine: torch.Tensor) -> torch.Tensor:
    """Concatenate tensors whose first dimensions differ: collectives need equal shapes, so pad, gather, trim."""
    if world_size() == 1:
        return mine
    lengths = [torch.zeros(1, dtype=torch.long, device=mine.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(mine)], device=mine.device))
    padded = mine.new_zeros((max(int(n) for n in lengths), *mine.shape[1:]))
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, lengths)])


# ------------------------------------------------------------------------------------------------ from outside


def launch(
    script: str | Path,
    *arguments: object,
    processes: int = 2,
    timeout: float = 600.0,
    env: Mapping[str, str] | None = None,
    echo: bool = True,
) -> Launched:
    """Run a script in several processes with torchrun, wait for it, and print what rank 0 prints as it comes.

    Each rank computes with one thread. Without a GPU for every rank all of them run on the CPU, and
    ``ACCELERATE_USE_CPU=1`` is set: without it accelerate would take each for a run of its own, and say nothing.

    Args:
        script: A file; it runs as ``python -m torch.distributed.run --standalone --nproc_per_node N script arguments``.
        arguments: Handed to the script, as strings.
        processes: Ranks, all on this machine.
        timeout: Seconds until every rank is ended.
        env: Further environment variables.
        echo: Whether to print rank 0's output.

    Raises:
        RoadmapError: No such script; a rank that died, with its number, exit code and last lines; the time is up.
            Whatever is raised, no process is left running.
    """
    script = Path(script)
    if not script.is_file():
        raise RoadmapError(f"There is no script {script}; give the path of a Python file.")
    if processes < 1 or timeout <= 0:
        raise RoadmapError(f"launch needs processes >= 1 and timeout > 0, not {processes} and {timeout}.")
    gpus, mark = torch.cuda.device_count(), uuid.uuid4().hex
    folders = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if gpus < processes:
        environment |= {"ACCELERATE_USE_CPU": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if gpus and echo:
            print(f"{processes} processes on the CPU (gloo): nccl needs a GPU for each, and there are {gpus}.")
    environment |= {**(env or {}), _MARK: mark}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "torchrun"), "w+", encoding="utf-8") as said:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += ["--redirects", "3", "--log-dir", folder, str(script), *map(str, arguments)]
        torchrun = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            shown, code = 0, None
            while code is None:
                code = torchrun.poll()
                text = _log(folder, 0, "stdout")
                if echo and len(text) > shown:
                    print(text[shown:], end="", flush=True)
                shown = len(text)
                if code is None and time.monotonic() - began > timeout:
                    quiet = ", ".join(f"rank {r}: {_last(folder, r, 1) or 'nothing'}" for r in range(processes))
                    raise RoadmapError(f"{script.name} was ended after {timeout:g} seconds, unfinished. Last lines - {quiet}")
                time.sleep(0.1)
        finally:
            _end(torchrun, mark)
        if code:
            said.seek(0)
            raise RoadmapError(_obituary(script.name, said.read(), folder, processes))
        logs = {stream: tuple(_log(folder, r, stream) for r in range(processes)) for stream in ("stdout", "stderr")}
    return Launched(logs["stdout"], logs["stderr"], time.monotonic() - began)


def _log(folder: str, number: int, stream: str) -> str:
    """A rank's output so far; the folder between is named by torchrun."""
    found = sorted(Path(folder).glob(f"*/attempt_*/{number}/{stream}.log"))
    return found[-1].read_text(encoding="utf-8", errors="replace") if found else ""


def _last(folder: str, number: int, lines: int) -> str:
    """The last lines that a rank wrote to stderr, or else to stdout."""
    text = (_log(folder, number, "stderr").strip() or _log(folder, number, "stdout").strip()).splitlines()
    return "\n".join(text[-lines:])


def _obituary(name: str, summary: str, folder: str, processes: int) -> str:
    """Which rank died first, how, and its last words, from torchrun's summary of failures and the rank's log."""
    dead = [(int(r), int(c)) for r, c in re.findall(r"\n\s*rank\s*: (\d+).*?exitcode\s*: (-?\d+)", summary, re.S)]
    dead = [(r, c) for r, c in dead if c != -signal.SIGTERM] or dead  # torchrun ends the survivors with that signal
    if not dead:  # torchrun itself failed, before it had started a rank
        return f"{name} could not be started:\n" + "\n".join(summary.strip().splitlines()[-_LINES:])
    # torchrun's root cause comes last; but a rank that was killed died before those that lost their connection to it
    number, code = next(((r, c) for r, c in dead if c < 0), dead[-1])
    how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"died with exit code {code}"
    hint = ", often a sign of too little memory" if code == -9 else ""
    words = _last(folder, number, _LINES)
    return f"Rank {number} of {processes} running {name} {how}{hint}. " + (
        f"Its last lines:\n{words}" if words else "It printed nothing."
    )


def _end(torchrun: subprocess.Popen[Any], mark: str) -> None:
    """End torchrun and every process that carries the mark; ranks are in sessions of their own and outlive their parent."""
    if torchrun.poll() is None:
        torchrun.terminate()  # it ends its ranks in turn
        try:
            torchrun.wait(3)
        except subprocess.TimeoutExpired:
            torchrun.kill()
            torchrun.wait()
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                process.kill()
        except psutil.Error:  # gone, or somebody else's
            continue
