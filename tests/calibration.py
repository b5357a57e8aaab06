"""How much work a CPU second of this machine is: the unit in which lessons are measured.

    python -m tests.calibration

One **reference second** is what a CPU second does on a machine that trains the 4 x 256 encoder at 4,500 tokens a second on
one core. A few steps of that training are timed here, in CPU seconds, so that other processes on the machine do not count:
a process that waits for a core uses no CPU time. The fastest of the repeats is taken, since a busy neighbour can only slow
one down (it shares caches and memory), never speed it up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOKENS_PER_SECOND = 4_500  # of the machine whose CPU second is the unit; one core of an AMD EPYC with AVX-512 measures 1.0
BATCH, LENGTH, STEPS, REPEATS = 16, 128, 2, 4
VARIABLE = "ROADMAP_CPU_SPEED"  # how many CPU seconds of this machine make one reference second


def cpu_seconds_per_reference_second() -> float:
    """Measure it in a process of its own, whose only thread does the work; about ten seconds.

    A value of 3 means: this machine needs three CPU seconds for the work of one reference second.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.calibration"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout.split()[-1])


def encoder() -> Any:
    """The 4 x 256 encoder with random weights; also what ``tests/benchmark_fit.py`` trains."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    config = ModernBertConfig(
        vocab_size=4_312,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        layer_types=["full_attention"] * 4,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    return ModernBertForSequenceClassification(config)


def main() -> None:
    """Train the encoder on random tokens and print the ratio."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = encoder()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids, labels = torch.randint(5, 4_312, (BATCH, LENGTH)), torch.randint(2, (BATCH,))

    def train(steps: int) -> float:
        began = time.process_time()
        for _ in range(steps):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - began

    train(1)  # memory is laid out here
    expected = STEPS * BATCH * LENGTH / TOKENS_PER_SECOND
    print(min(train(STEPS) for _ in range(REPEATS)) / expected)


if __name__ == "__main__":
    main()
