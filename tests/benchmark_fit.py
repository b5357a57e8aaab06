"""What ``fit`` costs beside a bare PyTorch loop: the same model, batches, optimiser and clipping, in alternation.

    OMP_NUM_THREADS=1 python -m tests.benchmark_fit

A benchmark, not a test: on a busy machine seconds are noise, so CPU time is compared, and the median of several rounds.
``fit`` also does something once a run (a quarter of a second: it ends with a garbage collection), so a short run is
subtracted from a long one: what is left is what a step costs.
"""

import itertools
import statistics
import time
from collections.abc import Iterator

from common.hardware import set_seed
from common.training import adamw, fit

import torch
from torch.utils.data import DataLoader

from tests.calibration import encoder

SHORT, LONG, ROUNDS = 5, 35, 7


def model() -> torch.nn.Module:
    set_seed(0)
    return encoder()


def batches() -> DataLoader:
    set_seed(1)
    rows = [{"input_ids": torch.randint(5, 4_312, (64,)), "labels": torch.tensor(i % 2)} for i in range(16 * LONG)]
    return DataLoader(
        rows, batch_size=16, collate_fn=lambda part: {key: torch.stack([row[key] for row in part]) for key in part[0]}
    )


def bare(net: torch.nn.Module, loader: DataLoader, steps: int) -> list[float]:
    """The loop without anything around it."""
    optimizer = adamw(net, lr=1e-4)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    losses = []
    net.train()
    for batch in itertools.islice(loader, steps):
        loss = net(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def rounds() -> Iterator[dict[tuple[str, int], float]]:
    """CPU seconds of both loops over a short and a long run, turn by turn; the first round warms up."""
    loader = batches()
    loops = {"bare": bare, "fit": lambda net, data, steps: fit(net, data, max_steps=steps, lr=1e-4)}
    for i in range(ROUNDS + 1):
        seconds = {}
        for name, run in list(loops.items())[:: 1 if i % 2 else -1]:
            for steps in (SHORT, LONG):
                net = model()
                began = time.process_time()
                run(net, loader, steps)
                seconds[name, steps] = time.process_time() - began
        if i:
            yield seconds


if __name__ == "__main__":
    measured = list(rounds())
    step = {n: statistics.median((m[n, LONG] - m[n, SHORT]) / (LONG - SHORT) for m in measured) for n in ("bare", "fit")}
    once = statistics.median(m["fit", SHORT] - m["bare", SHORT] for m in measured)
    print(
        f"bare loop {1000 * step['bare']:.1f} ms a step, fit {1000 * step['fit']:.1f} ms: {step['fit'] / step['bare'] - 1:+.1%}"
    )
    print(f"and {once:.2f} s once a run")
