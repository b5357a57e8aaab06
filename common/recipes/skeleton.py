"""What every recipe does around its own work: refuse to overwrite, train with checkpoints, write the card, ship.

A recipe makes a :class:`Workshop`, trains in it with :meth:`Workshop.fit`, and ends with :meth:`Workshop.ship`. A run that
was interrupted is continued by the same call with ``resume=True``.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import RoadmapError
from common.hardware import machine, parameters, set_seed
from common.packages import sha256
from common.training import History, adamw, fit

import torch
from torch.utils.data import DataLoader


class Workshop:
    """One run of a recipe.

    Attributes:
        name: Of the checkpoint, such as ``tiny-bert-zh``.
        folder: Where the checkpoint goes.
        work: Where the run keeps what it may be resumed from, beside ``folder``.
        recipe: A dataclass; its ``steps`` and ``seed`` are used where it has them.
        steps: Optimiser steps of this run: the recipe's, or fewer in a trial.
        resume: Whether an interrupted run is continued.
    """

    def __init__(
        self, name: str, folder: Path, recipe: Any, *, steps: int | None = None, force: bool = False, resume: bool = False
    ):
        """Prepare the work folder and seed everything random.

        Args:
            name, folder, recipe: As the attributes.
            steps: Instead of the recipe's, for a trial.
            force: Replace a checkpoint that is there.
            resume: Continue an interrupted run.

        Raises:
            RoadmapError: If ``folder`` holds a checkpoint that is neither to be replaced nor to be continued.
        """
        self.name, self.folder, self.recipe, self.resume = name, Path(folder).resolve(), recipe, resume
        self.steps, self.seed = steps or getattr(recipe, "steps", None), getattr(recipe, "seed", 42)
        self.work = work_folder(self.folder, force=force, resume=resume)
        self.began, self.cpu_began = time.perf_counter(), time.process_time()
        set_seed(self.seed)

    def fit(self, model: torch.nn.Module, train: DataLoader[Any], **options: Any) -> History:
        """:func:`common.training.fit` with this run's folder, seed and number of steps; further options go to it.

        Args:
            model: Trained in place.
            train: Its batches.
        """
        defaults: dict[str, Any] = {"max_steps": self.steps, "schedule": "cosine", "seed": self.seed, "save_every": 500}
        defaults |= {"folder": self.work, "label": self.name, "resume": self.resume}
        return fit(model, train, **(defaults | options))

    def facts(self, model: torch.nn.Module, history: History) -> dict[str, Any]:
        """What the card of every checkpoint says: the recipe, what was measured during the run, and what it took."""
        return {
            "name": self.name,
            "recipe": asdict(self.recipe) | {"steps": len(history.steps)},
            "parameters": parameters(model),
            "tokens_seen": history.tokens,
            "curve": loss_curve(history.steps),
            "held_out": history.evaluations[-1] if history.evaluations else {},
            "evaluations": history.evaluations,
            "seconds_of_last_run": round(time.perf_counter() - self.began),
            "cpu_seconds_of_last_run": round(time.process_time() - self.cpu_began),
            "machine": machine(),
            "threads": torch.get_num_threads(),
        }

    def ship(self, model: Any, processor: Any, history: History, **card: Any) -> Path:
        """Write a finished checkpoint in half precision with its tokenizer or processor and its card; empty the work folder.

        Args:
            model: Its weights become float16.
            processor: A tokenizer or processor.
            history: Of the run.
            card: What the card says besides :meth:`facts`.
        """
        facts = self.facts(model, history) | card
        self.folder.mkdir(parents=True, exist_ok=True)
        save(model, processor, self.folder)
        write_card(self.folder, facts)
        shutil.rmtree(self.work, ignore_errors=True)
        return self.folder


def muon_and_adamw(
    model: torch.nn.Module, matrices: list[torch.nn.Parameter], *, lr: float, adamw_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else: embeddings, norms, biases, heads.

    Args:
        model: All that is trained.
        matrices: Those of its parameters that Muon gets; each has two dimensions.
        lr: Peak learning rate of Muon.
        adamw_lr: Peak learning rate of AdamW.
        weight_decay: Of matrices, for both.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale of its updates: Liu et
        al., "Muon is scalable for LLM training" (2025).
    """
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [muon, adamw(rest, lr=adamw_lr, weight_decay=weight_decay, betas=(0.9, 0.98))]


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write weights in half precision and the processor, without the paths of the machine that made them."""
    model.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if _without_paths(content):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_paths(content: Any) -> bool:
    """Remove every ``_name_or_path`` and ``name_or_path``, at any depth; whether there was one."""
    if not isinstance(content, dict):
        return False
    found = [key for key in ("_name_or_path", "name_or_path") if content.pop(key, None) is not None]
    return any([*found, *[_without_paths(value) for value in content.values()]])


def work_folder(folder: Path, *, force: bool, resume: bool) -> Path:
    """Where a run keeps what it may be resumed from, beside the folder of its checkpoint; emptied unless ``resume``.

    Raises:
        RoadmapError: If the folder holds a checkpoint that is neither to be replaced nor to be continued.
    """
    if (folder / "model.safetensors").exists() and not (force or resume):
        raise RoadmapError(f"{folder} holds a checkpoint; give --force to replace it, or --out for another folder.")
    work = folder.parent / f".{folder.name}-run"
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    return work


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what a checkpoint is made of, for its card."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name not in ("card.json", "README.md")}


def loss_curve(steps: list[dict[str, float]]) -> list[list[float]]:
    """About a hundred points of a training curve, for a card: step and loss in nats, of records as in ``History.steps``."""
    return [[int(r["step"]), round(r["loss"], 4)] for r in steps[:: max(1, len(steps) // 100)]]


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write ``card.json`` (with the hashes of the checkpoint's files) and the README made from it."""
    card = card | {"sha256": file_hashes(folder)}
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sections = (_facts, _note, _opponent, _kinds, _probe, _gain)
    lines = [line for section in sections for line in section(card)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _facts(card: dict[str, Any]) -> list[str]:
    """What it is, and what it took."""
    origin = f"fine-tuned from {card['recipe']['base']}" if "base" in card["recipe"] else "pre-trained from random weights"
    losses = [loss for _, loss in card["curve"]]
    falls = " → ".join(f"{losses[i]:.2f}" for i in (0, len(losses) // 4, len(losses) // 2, -1))
    held = ", ".join(f"{key} {value:.4g}" for key, value in card["held_out"].items() if key != "step")
    seconds = f"{card['seconds_of_last_run']:,} s"
    if "cpu_seconds_of_last_run" in card:
        seconds += f", {card['cpu_seconds_of_last_run']:,} CPU s"
    lines = [
        f"# {card['name']}",
        "",
        f"Made by `python -m common pretrain {card['name']}`, {origin}.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {card['parameters']:,} |",
        f"| data | {card['data']} |",
        f"| steps, tokens seen | {card['recipe']['steps']:,}, {card['tokens_seen']:,} |",
        f"| {card.get('held_out_kind', 'held-out text')} | {held} |",
        f"| training loss | {falls} nats |",
        f"| machine | {card['machine']}, {card['threads']} thread(s), {seconds} |",
        f"| licence | {card['licence']} |",
    ]
    return lines + ([f"| teacher | {card['teacher']} |"] if "teacher" in card else [])


def _note(card: dict[str, Any]) -> list[str]:
    return ["", card["note"]] if "note" in card else []


def _opponent(card: dict[str, Any]) -> list[str]:
    """A picture model beside the nearest picture, and what other seeds give."""
    lines = []
    if found := card.get("opponent"):
        lines += [
            "",
            f"Recall@5 (Chinese names, {found['pictures']} pictures): {found['clip']:.3f}; the nearest training picture, "
            f"without learning: {found['nearest_picture']:.3f} (exact McNemar test: p = {found['p']:.1g}).",
        ]
    if seeds := card.get("seeds"):
        lines += [
            "",
            "Trained anew with other seeds:",
            "",
            "| seed | recall@5 | p against the nearest picture |",
            "|---|---:|---:|",
        ]
        lines += [f"| {seed} | {row['clip']:.3f} | {row['p']:.1g} |" for seed, row in seeds.items()]
    return lines


def _kinds(card: dict[str, Any]) -> list[str]:
    """A chat model by kind of instruction."""
    if not (kinds := card.get("by_kind")):
        return []
    untaught = " and ".join(card.get("not_taught", [])) or "nothing"
    lines = ["", f"On the whole test split, by kind (kept out of its training, for lessons to teach: {untaught}):", ""]
    lines += ["| kind | rows | exact match |", "|---|---:|---:|"]
    return lines + [f"| {kind} | {row['n']:,} | {row['exact_match']:.3f} |" for kind, row in kinds.items()]


def _probe(card: dict[str, Any]) -> list[str]:
    """What a frozen model knows."""
    if not (probe := card.get("probe")):
        return []
    says = f"Frozen, with logistic regression on its states (last and mean) of {probe['examples']:,} reviews: accuracy "
    return ["", f"{says}{probe['accuracy']:.3f} on test."]


def _gain(card: dict[str, Any]) -> list[str]:
    """What pre-training gives, beside a random start and counting."""
    if not (gain := card.get("fine_tuning")):
        return []
    lines = [
        "",
        "## What pre-training gives",
        "",
        f"Same recipe, {len(gain[0]['random']['values'])} seeds, mean ± standard deviation, test split. Counting: TF-IDF of "
        "characters and logistic regression on the same texts, its settings chosen on validation.",
        "",
        "| task | training examples | metric | counting | random start | pre-trained |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in gain:
        examples = f"{row['examples']:,}" if row["examples"] else "all"
        counting = f"{row['tfidf']:.3f}" if "tfidf" in row else ""
        cells = [f"{row[k]['mean']:.3f} ± {row[k]['std']:.3f}" for k in ("random", "pretrained")]
        lines.append(f"| {' | '.join([row['task'], examples, row['metric'], counting, *cells])} |")
    return lines
