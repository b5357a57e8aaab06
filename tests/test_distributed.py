"""``launch`` and ``gather`` with real processes: every sample once, a dead rank named, nobody left behind."""

import textwrap
import time
from pathlib import Path

from common.distributed import gather, launch, print0, rank, start, stop, world_size
from common.errors import RoadmapError

import psutil
import pytest
import torch

HEAD = """
import os, signal, sys, time
from common.distributed import gather, print0, rank, start, stop, world_size
from common.errors import RoadmapError
import torch
import torch.distributed as dist
"""


def script(folder: Path, body: str) -> Path:
    path = folder / "ranks.py"
    path.write_text(HEAD + textwrap.dedent(body), encoding="utf-8")
    return path


def processes_of(path: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(path) in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_two_ranks_count_every_sample_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """101 samples, padded by the sampler to 102, shuffled, of two columns: all of them, in order, on both ranks."""
    path = script(
        tmp_path,
        """
        from accelerate import Accelerator
        from torch.utils.data import DistributedSampler
        device = start()
        assert dist.get_backend() == "gloo" and device.type == "cpu" and torch.get_num_threads() == 1
        print0("rank", rank(), "of", world_size(), sys.argv[1:], os.environ["EXTRA"])
        mine = torch.tensor(list(DistributedSampler(range(101), shuffle=True)))
        assert len(mine) == 51
        whole = gather(torch.stack([mine, mine**2], 1).float(), mine)
        assert whole.shape == (101, 2) and torch.equal(whole[:, 1], torch.arange(101.0) ** 2)
        uneven = torch.arange(101)[:70] if rank() == 0 else torch.arange(101)[70:]
        assert torch.equal(gather(uneven + 5, uneven), torch.arange(101) + 5)
        assert len(gather(torch.arange(3 * (1 - rank())), torch.arange(3 * (1 - rank())))) == 3  # one rank has nothing
        try:
            gather(mine[:40], mine[:40])
        except RoadmapError as error:
            print("refused:", error)
        assert Accelerator().num_processes == 2  # two single runs without the variable that launch sets
        stop()
        """,
    )
    done = launch(path, "--steps", 3, timeout=120, env={"EXTRA": "set"})
    printed = "rank 0 of 2 ['--steps', '3'] set\n"
    assert done.output[0].startswith(printed) and "rank" not in done.output[1].partition("refused")[0]
    assert capsys.readouterr().out == done.output[0]
    assert all("samples are on no rank" in text for text in done.output)
    assert 0 < done.seconds < 120


def test_a_rank_that_raises_is_named_with_its_last_words(tmp_path: Path):
    path = script(
        tmp_path,
        """
        start()
        if rank() == 1:
            raise ValueError("the learning rate is a pumpkin")
        dist.barrier()
        """,
    )
    with pytest.raises(RoadmapError, match=r"(?s)Rank 1 of 2 running ranks.py died with exit code 1\..*is a pumpkin$"):
        launch(path, timeout=120, echo=False)
    assert processes_of(path) == []


def test_a_killed_rank_and_its_children_leave_nothing_behind(tmp_path: Path):
    """The rank kills itself as the out-of-memory killer would, while a child of its own sleeps in another session."""
    path = script(
        tmp_path,
        """
        import subprocess
        start()
        if rank() == 1:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", __file__], start_new_session=True)
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
        """,
    )
    with pytest.raises(RoadmapError, match=r"Rank 1 of 2 running ranks.py was killed by signal 9 \(SIGKILL\).*memory"):
        launch(path, timeout=120, echo=False)
    time.sleep(0.2)
    assert processes_of(path) == []


def test_the_time_limit(tmp_path: Path):
    path = tmp_path / "ranks.py"
    path.write_text("import time\nprint('working', flush=True)\ntime.sleep(600)\n", encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(RoadmapError, match="ended after 8 seconds, unfinished. Last lines - rank 0: working, rank 1: working"):
        launch(path, timeout=8, echo=False)
    assert time.monotonic() - began < 20
    time.sleep(0.2)
    assert processes_of(path) == []


def test_requests_that_cannot_be_met(tmp_path: Path):
    with pytest.raises(RoadmapError, match="There is no script"):
        launch(tmp_path / "absent.py")
    path = script(tmp_path, "")
    for wrong in ({"processes": 0}, {"timeout": 0}):
        with pytest.raises(RoadmapError, match="processes >= 1 and timeout > 0"):
            launch(path, **wrong)


def test_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RoadmapError, match="Rank 1 of this machine has no GPU of its own: there are 1"):
        start()


def test_without_torchrun_there_is_one_rank(capsys: pytest.CaptureFixture[str]):
    device = start()
    assert (rank(), world_size()) == (0, 1) and device.type in ("cpu", "cuda")
    print0("alone")
    assert capsys.readouterr().out == "alone\n"
    order = torch.tensor([2, 0, 1, 0])
    assert gather(order * 10, order).tolist() == [0, 10, 20]
    assert gather(order[:0], order[:0]).tolist() == []
    with pytest.raises(RoadmapError, match="1 of 3 samples are on no rank"):
        gather(order[:2], order[:2])
    with pytest.raises(RoadmapError, match="one number a result"):
        gather(order, order[:2])
    stop()
