"""What ``fit`` costs beside a bare PyTorch loop: the same model, batches, optimiser and clipping, in alternation.

    OMP_NUM_THREADS=1 python -m tests.benchmark_fit

A benchmark, not a test: on a busy machine seconds are noise, so CPU time is compared, and the median of several rounds.
"""

import statistics
import time
from collections.abc import Iterator

from common.hardware import set_seed
from common.training import adamw, fit

import torch
from torch.utils.data import DataLoader
from transformers import ModernBertConfig, ModernBertForSequenceClassification

STEPS, ROUNDS = 30, 7


def model() -> torch.nn.Module:
    set_seed(0)
    config = ModernBertConfig(
        vocab_size=4_312,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        layer_types=["full_attention"] * 4,
        pad_token_id=0,
    )
    return ModernBertForSequenceClassification(config)


def batches() -> DataLoader:
    set_seed(1)
    rows = [{"input_ids": torch.randint(5, 4_312, (64,)), "labels": torch.tensor(i % 2)} for i in range(16 * STEPS)]
    return DataLoader(
        rows, batch_size=16, collate_fn=lambda part: {key: torch.stack([row[key] for row in part]) for key in part[0]}
    )


def bare(net: torch.nn.Module, loader: DataLoader) -> list[float]:
    """The loop without anything around it."""
    optimizer = adamw(net, lr=1e-4)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    losses = []
    net.train()
    for batch in loader:
        loss = net(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def rounds() -> Iterator[tuple[float, float]]:
    """CPU seconds of the bare loop and of ``fit``, turn by turn; the first round warms up."""
    loader = batches()
    for i in range(ROUNDS + 1):
        contestants = [("bare", lambda: bare(model(), loader)), ("fit", lambda: fit(model(), loader, max_steps=STEPS, lr=1e-4))]
        seconds = {}
        for name, run in contestants[:: 1 if i % 2 else -1]:
            began = time.process_time()
            run()
            seconds[name] = time.process_time() - began
        if i:
            yield seconds["bare"], seconds["fit"]


if __name__ == "__main__":
    measured = list(rounds())
    alone, whole = (statistics.median(column) for column in zip(*measured))
    print(f"bare loop {1000 * alone / STEPS:.1f} ms a step, fit {1000 * whole / STEPS:.1f} ms a step: {whole / alone - 1:+.1%}")
