"""The rows: what is measured on a GPU, what each expects of memory and time, and the code that measures it.

Every figure is repeated; ``spread`` is the difference of the largest and the smallest of the repeats. Models have random
weights: speed and memory do not depend on what a model knows.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.hardware import set_seed
from common.training import adamw, fit, training_arguments

import torch
from torch.utils.data import DataLoader

HERE = Path(__file__).parent
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12}
"""Dense bf16 operations a second that the makers state for each card."""


@dataclass(frozen=True)
class Figure:
    """One measured number; ``unit`` says what of, ``spread`` how far the ``repeats`` lie apart."""

    name: str
    value: float
    unit: str
    spread: float
    repeats: int


@dataclass(frozen=True)
class Row:
    """What can be measured.

    Attributes:
        name: How it is called.
        about: One line.
        seconds: Expected on an H100, models and data ready.
        gigabytes: Expected peak of GPU memory.
        run: Measures; takes whether sizes are toy sizes.
    """

    name: str
    about: str
    seconds: int
    gigabytes: float
    run: Callable[[bool], Iterator[Figure]]


def figure(name: str, values: list[float], unit: str) -> Figure:
    """The median of repeats, with their spread."""
    return Figure(name, statistics.median(values), unit, max(values) - min(values), len(values))


# ------------------------------------------------------------------------------------------------ models and batches


def bert(toy: bool) -> Any:
    """A classifier of BERT-base's shape, random weights, float32."""
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128} if toy else {}
    return BertForSequenceClassification(BertConfig(vocab_size=21_128, hidden_dropout_prob=0.0, **shape))


def half_billion(toy: bool) -> Any:
    """A decoder of Qwen2.5-0.5B's shape, random weights, float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "hidden_size": 64 if toy else 896,
        "intermediate_size": 128 if toy else 4864,
        "num_hidden_layers": 2 if toy else 24,
        "num_attention_heads": 2 if toy else 14,
        "num_key_value_heads": 2,
    }
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=1_000 if toy else 151_936, tie_word_embeddings=True, **shape))


def batches(model: Any, rows: int, length: int, steps: int) -> DataLoader[Any]:
    """Random token ids ``(rows, length)`` with labels: a class a row, or the ids themselves for a language model."""
    set_seed(0)
    causal = "CausalLM" in type(model).__name__
    examples = []
    for i in range(rows * steps):
        ids = torch.randint(10, model.config.vocab_size, (length,))
        examples.append({"input_ids": ids, "labels": ids if causal else torch.tensor(i % 2)})
    return DataLoader(examples, batch_size=rows)  # type: ignore[arg-type]


def operations_per_token(model: Any, length: int) -> float:
    """Of a training step: 6 for each weight of a matrix product, and attention's two products, forward and backward.

    Source:
        Chowdhery et al., "PaLM" (2022), appendix B.
    """
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and p.ndim == 2)
    if "CausalLM" in type(model).__name__:
        weights += config.vocab_size * config.hidden_size  # the tied output matrix
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * length


# ------------------------------------------------------------------------------------------------ three loops


def bare_loop(model: Any, loader: DataLoader[Any]) -> None:
    """What a training step is, and nothing around it."""
    home = next(model.parameters()).device
    optimizer = adamw(model, lr=1e-4)
    model.train()
    for batch in loader:
        with torch.autocast(home.type, torch.bfloat16):
            loss = model(**{key: value.to(home) for key, value in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def fit_loop(model: Any, loader: DataLoader[Any]) -> None:
    """The course's own loop."""
    fit(model, loader, epochs=1, lr=1e-4, precision="bf16")


def trainer_loop(model: Any, loader: DataLoader[Any]) -> None:
    """The library's Trainer."""
    import tempfile

    from transformers import Trainer

    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder,
            per_device_train_batch_size=loader.batch_size,
            num_train_epochs=1,
            learning_rate=1e-4,
            save_strategy="no",
            eval_strategy="no",
        )
        Trainer(model=model, args=arguments, train_dataset=loader.dataset).train()


def throughput(make: Callable[[bool], Any], rows: int, length: int, steps: int, toy: bool) -> Iterator[Figure]:
    """Tokens a second, peak memory and share of the card's peak, for the three loops.

    Starting costs are taken out: the seconds of a short run are subtracted from those of a long one.
    """
    rows, length, steps, repeats = (2, 16, 4, 2) if toy else (rows, length, steps, 3)
    home = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, loop in (("bare loop", bare_loop), ("fit", fit_loop), ("Trainer", trainer_loop)):
        model = make(toy).to(home)
        short, long = batches(model, rows, length, max(1, steps // 4)), batches(model, rows, length, steps)
        loop(model, short)  # memory is laid out and kernels are chosen here
        rates, peaks = [], []
        for _ in range(repeats):
            if home.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            short_time, long_time = seconds(loop, model, short), seconds(loop, model, long)
            if toy:  # too short for a difference
                short_time = 0.0
            rates.append(rows * length * (len(long) - len(short)) / (long_time - short_time))
            peaks.append(torch.cuda.max_memory_allocated() / 1e9 if home.type == "cuda" else 0.0)
        yield figure(f"{name}: throughput", rates, "tokens/s")
        if home.type == "cuda":
            yield figure(f"{name}: peak memory", peaks, "GB")
            card = torch.cuda.get_device_name()
            peak = next((value for part, value in PEAK.items() if part in card), None)
            if peak:
                share = [100 * rate * operations_per_token(model, length) / peak for rate in rates]
                yield figure(f"{name}: share of the card's peak", share, "%")
        del model


def seconds(loop: Callable[[Any, Any], None], model: Any, loader: DataLoader[Any]) -> float:
    """Wall-clock seconds of a loop, the work still queued on the device included."""
    began = time.perf_counter()
    loop(model, loader)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


# ------------------------------------------------------------------------------------------------ the course's own models


def decoder(toy: bool) -> Iterator[Figure]:
    """The next-token part of the recipe of ``tiny-qwen-zh`` on its own blocks: tokens a second, and perplexity reached."""
    import math

    from common.recipes.qwen import QwenRecipe, decoder_model

    import numpy as np
    from transformers import AutoTokenizer

    recipe = QwenRecipe(compiled=False)
    table = torch.from_numpy(np.load(HERE / "data" / "blocks.npy").astype(np.int64))
    held_out, train = table[:256], table[256:]
    batch, steps = (4, 3) if toy else (recipe.batch, 600)
    home = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates, perplexities = [], []
    for seed in range(2 if toy else 3):
        set_seed(seed)
        model: Any = decoder_model(AutoTokenizer.from_pretrained(HERE / "data" / "tokenizer")).to(home)
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        muon = torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        rest = adamw((p for p in model.parameters() if id(p) not in chosen), lr=recipe.adamw_lr, weight_decay=recipe.weight_decay)
        loader = DataLoader(
            train,  # type: ignore[arg-type]
            batch_size=batch,
            shuffle=True,
            collate_fn=lambda rows: {"input_ids": torch.stack(rows), "labels": torch.stack(rows)},
        )
        took = seconds(
            lambda m, d, both=(muon, rest), s=seed: fit(
                m, d, max_steps=steps, optimizer=both, schedule="cosine", warmup=0.03, precision="bf16", seed=s
            ),
            model,
            loader,
        )
        rates.append(batch * table.shape[1] * steps / took)
        with torch.inference_mode():
            part = held_out[: 8 if toy else 256]
            losses = [model(input_ids=x.to(home), labels=x.to(home)).loss.item() for x in part.split(8)]
        perplexities.append(math.exp(statistics.mean(losses)))
    yield figure("throughput", rates, "tokens/s")
    yield figure(f"held-out perplexity after {steps} steps of {batch} x {table.shape[1]} tokens", perplexities, "per token")


def rehearsal(toy: bool) -> Iterator[Figure]:
    """One lesson of each chapter at full scale against the local Hub, on the device: how many ran."""
    from common.course.lessons import resolve

    from tests.rehearse import SAMPLE, rehearse

    lessons = [lesson for name in (SAMPLE[:1] if toy else SAMPLE) for lesson in resolve(name)]
    outcomes = list(rehearse(lessons))
    for outcome in outcomes:
        yield figure(outcome.lesson.name, [outcome.seconds], "s" if outcome.error is None else "s, FAILED")
    yield figure("lessons that ran", [float(sum(outcome.error is None for outcome in outcomes))], f"of {len(outcomes)}")


ROWS = [
    Row("fit-bert", "fit, a bare loop and the Trainer at BERT-base", 60, 6, lambda toy: throughput(bert, 64, 128, 40, toy)),
    Row("fit-0.5b", "the same at Qwen2.5-0.5B", 120, 40, lambda toy: throughput(half_billion, 8, 512, 24, toy)),
    Row("decoder", "pre-training of the tiny decoder", 90, 8, decoder),
    Row("rehearsal", "one lesson of each chapter at full scale, on the device", 150, 10, rehearsal),
]


if __name__ == "__main__":
    name, toy = sys.argv[1], "--toy" in sys.argv
    for found in next(row for row in ROWS if row.name == name).run(toy):
        print("FIGURE " + json.dumps(asdict(found)), flush=True)
