"""Teach the chat model one skill by one method, at one rate and with one seed, and store what came out.

The lessons of this chapter read the stored figures and repeat some of them. Same base, same rows, same steps for all:

    python compare.py lora            # every run of lesson 05 that is not stored yet
    python compare.py lora --limit 1  # only the next one

The skill is ``load_data("extraction")``: list all persons, places and organisations of a sentence in a fixed format. The
base has never been taught it. Rates are chosen on validation; the test split is scored in the same run, and not looked at.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import ASSETS, checkpoint, device, fit, load_data, pick, set_seed
from common.chat import answer, chat_loader, exact_match
from common.hardware import machine
from common.metrics import listed_f1
from common.packages import sha256

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = checkpoint("chat")
SHORT, LONG = pick(tiny=60, full=300), pick(tiny=300, full=1_500)  # optimiser steps
BATCH, TOKENS = 16, pick(tiny=256, full=640)
VALIDATION, TEST, OLD = 96, 300, 100  # conversations
TAUGHT = pick(tiny=("sentiment", "location", "organisation", "law_department"), full=("open",))  # kinds the base knows
Run = dict[str, Any]


def lora_runs() -> list[Run]:
    """Lesson 05: three ranks with three alphas at four rates, and full fine-tuning at three, in short runs."""
    same: Run = {"seed": 0, "old_rows": 0.0, "steps": SHORT}
    runs: list[Run] = [
        {"method": "lora", "rank": rank, "alpha": alpha, "lr": lr, **same}
        for rank in (1, 4, 16)
        for alpha in (2, 16, 64)
        for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    ]
    return runs + [{"method": "full", "lr": lr, **same} for lr in (3e-4, 6e-4, 1.2e-3)]


def repeated(stored: list[Run]) -> list[Run]:
    """Rank 16 with alpha 16, and full fine-tuning: long runs with three seeds, without old rows and with a quarter of them.

    The rate of each is that of its short run with the lowest validation loss.
    """
    runs = []
    for chosen in ({"method": "lora", "rank": 16, "alpha": 16}, {"method": "full"}):
        tried = [row for row in stored if row["steps"] == SHORT and chosen.items() <= row.items()]
        same = {**chosen, "lr": min(tried, key=lambda row: row["loss"])["lr"], "steps": LONG}
        runs += [{**same, "seed": seed, "old_rows": part} for part in (0.0, 0.25) for seed in (0, 1, 2)]
    return runs


# ------------------------------------------------------------------------------------------------ one run


def conversations(run: Run) -> list[Any]:
    """The rows of one run: the first of the new skill, and a share of old instructions in their place."""
    taught = load_data("instructions")["train"]
    rows = run["steps"] * BATCH
    old = round(run["old_rows"] * rows)
    known = [talk for talk, kind in zip(taught["messages"][: 4 * old], taught["kind"][: 4 * old]) if kind in TAUGHT]
    return load_data("extraction")["train"]["messages"][: rows - old] + known[:old]


def prepared(run: Run) -> Any:
    """The model of one run, ready to be trained."""
    set_seed(run["seed"])
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).to(device(verbose=False))
    if run["method"] == "full":
        return model
    config = LoraConfig(task_type="CAUSAL_LM", r=run["rank"], lora_alpha=run["alpha"], target_modules="all-linear")
    return get_peft_model(model, config)


def train(run: Run) -> Run:
    """Train, and measure: validation loss, the skill on test, old instructions, CPU seconds, trained parameters."""
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), prepared(run)
    loader = chat_loader(tokenizer, conversations(run), batch=BATCH, max_length=TOKENS)
    began = time.process_time()
    label = " ".join(str(value) for value in run.values())
    fit(model, loader, max_steps=run["steps"], lr=run["lr"], schedule="cosine", seed=run["seed"], label=label)
    seconds = time.process_time() - began
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return run | {"trained": trained, "cpu_seconds": round(seconds, 1)} | measured(model, tokenizer)


def measured(model: Any, tokenizer: Any) -> dict[str, float]:
    """What a model does with the new skill and with old instructions."""
    skill, past = load_data("extraction"), load_data("instructions")["test"]
    test = skill["test"]["messages"][:TEST]
    known = [talk for talk, kind in zip(past["messages"][: 20 * OLD], past["kind"][: 20 * OLD]) if kind in TAUGHT][:OLD]
    scores = listed_f1(answer(model, tokenizer, test, max_new_tokens=32), [talk[-1]["content"] for talk in test])
    old = exact_match(model, tokenizer, known, max_new_tokens=8)
    found = {"loss": loss_of(model, tokenizer), "f1": scores["f1"], "exact_match": scores["exact_match"], "old_skills": old}
    return {name: round(value, 4) for name, value in found.items()}


@torch.no_grad()
def loss_of(model: Any, tokenizer: Any) -> float:
    """Nats per labelled token on validation."""
    rows = load_data("extraction")["validation"]["messages"][:VALIDATION]
    nats = tokens = 0.0
    for batch in chat_loader(tokenizer, rows, batch=48, max_length=TOKENS, shuffle=False):
        count = float((batch["labels"][:, 1:] != -100).sum())
        loss = model.eval()(**{key: value.to(model.device) for key, value in batch.items()}).loss
        nats, tokens = nats + float(loss) * count, tokens + count
    return nats / tokens


# ------------------------------------------------------------------------------------------------ the store


def load(path: Path) -> dict[str, Any]:
    """What is stored; empty if it was made with another checkpoint."""
    store = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    return store if store.get("model_sha256") in (None, weights()) else {"runs": []}


def weights() -> str | None:
    """The hash of the base's weights, if it is a folder."""
    file = Path(MODEL) / "model.safetensors"
    return sha256(file) if file.exists() else None


def save(path: Path, runs: list[Run]) -> None:
    """Write the store anew, so that an interrupted plan keeps what it has."""
    about = {"model": Path(MODEL).name, "model_sha256": weights(), "machine": machine(), "batch": BATCH}
    store = about | {"date": datetime.now(UTC).date().isoformat(), "runs": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(store, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def missing(planned: list[Run], stored: list[Run]) -> list[Run]:
    """Planned runs that are not stored."""
    return [run for run in planned if not any(run.items() <= row.items() for row in stored)]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=["lora"], help="which lesson's runs")
    parser.add_argument("--out", type=Path, default=ASSETS / "results" / "peft_lora.json", help="the store")
    parser.add_argument("--limit", type=int, help="stop after so many runs")
    options = parser.parse_args(arguments)
    stored, done = load(options.out)["runs"], 0
    for plan in (lora_runs, lambda: repeated(stored)):
        for run in missing(plan(), stored):
            if options.limit is not None and done >= options.limit:
                return
            stored.append(train(run))
            save(options.out, stored)
            done += 1
            print(json.dumps(stored[-1]), flush=True)


if __name__ == "__main__":
    main()
