"""``checkpoint(name)``: a shipped tiny checkpoint at tiny scale, a Hub model at full scale.

The tiny checkpoints in ``assets/models`` are really pre-trained (:mod:`common.pretraining`) and stored in half
precision; each folder has a card with its data, licence, steps, curve and held-out figures.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RoadmapError, unknown
from common.packages import sha256
from common.paths import ASSETS
from common.scale import scale

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODELS_DIR = ASSETS / "models"


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint is at each scale.

    Attributes:
        about: One line.
        tiny: Its folder in ``assets/models``.
        full: Its name on the Hub.
        full_parameters: Parameters at full scale, in millions.
        full_licence: The licence the Hub states.
    """

    about: str
    tiny: str
    full: str
    full_parameters: float
    full_licence: str


MODELS = {
    "bert": ModelCard("encoder, masked language model", "tiny-bert-zh", "hfl/chinese-macbert-base", 102, "Apache-2.0"),
    "bert-sentiment": ModelCard(
        "that encoder, fine-tuned on reviews",
        "tiny-bert-zh-sentiment",
        "uer/roberta-base-finetuned-jd-binary-chinese",
        102,
        "not stated",
    ),
    "bert-ner": ModelCard(
        "that encoder, fine-tuned on named entities",
        "tiny-bert-zh-ner",
        "uer/roberta-base-finetuned-cluener2020-chinese",
        102,
        "not stated",
    ),
    "qwen": ModelCard("decoder, causal language model", "tiny-qwen-zh", "Qwen/Qwen2.5-0.5B", 494, "Apache-2.0"),
    "chat": ModelCard("that decoder, taught to answer", "tiny-qwen-zh-chat", "Qwen/Qwen2.5-0.5B-Instruct", 494, "Apache-2.0"),
    "t5": ModelCard("encoder and decoder, text to text", "tiny-t5-zh", "google/mt5-small", 300, "Apache-2.0"),
    "clip": ModelCard(
        "image tower and text tower",
        "tiny-clip-emoji",
        "openai/clip-vit-base-patch32",
        151,
        "MIT (the authors' repository)",
    ),
    "llava": ModelCard(
        "image tower, projector and decoder in one",
        "tiny-llava-emoji",
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        894,
        "Tongyi Qianwen research licence",
    ),
}


def checkpoint(name: str) -> str:
    """What to pass to ``from_pretrained``: a local folder at tiny scale, a Hub name at full scale.

    Args:
        name: A key of :data:`MODELS`.

    Raises:
        RoadmapError: Unknown name, or a shipped folder that is missing or incomplete.
    """
    if name not in MODELS:
        raise unknown("checkpoint", name, MODELS, "python -m common models")
    if scale() == "full":
        return MODELS[name].full
    folder = MODELS_DIR / MODELS[name].tiny
    if not (folder / "model.safetensors").is_file():
        raise RoadmapError(
            f"The checkpoint {folder} is missing; get it back with: git checkout -- {folder.relative_to(ASSETS.parent)}, "
            f"or make it anew with: python -m common pretrain {MODELS[name].tiny}"
        )
    return str(folder)


def from_scratch(auto_class: Any, name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """The same architecture with random weights: the row "without pre-training" of every task lesson.

    Args:
        auto_class: Such as ``AutoModelForSequenceClassification``.
        name_or_path: What :func:`checkpoint` returns.
        kwargs: Configuration values, such as ``num_labels=2``.

    Returns:
        A model in float32, initialised from torch's current seed.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    return model


def read_card(name: str) -> dict[str, Any]:
    """The machine-readable card of a tiny checkpoint: how it was trained and what was measured.

    Raises:
        RoadmapError: Unknown name, or no card in the folder.
    """
    folder = next((c.tiny for key, c in MODELS.items() if name in (key, c.tiny)), None)
    if folder is None:
        raise unknown("checkpoint", name, MODELS, "python -m common models")
    path = MODELS_DIR / folder / "card.json"
    if not path.is_file():
        raise RoadmapError(f"{folder} has no card.json; make the checkpoint anew with: python -m common pretrain {folder}")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


def verify(name: str) -> list[str]:
    """The files of a tiny checkpoint whose content differs from the hashes in its card; empty means intact."""
    card = read_card(name)
    folder = MODELS_DIR / card["name"]
    return [file for file, digest in card["sha256"].items() if not (folder / file).is_file() or sha256(folder / file) != digest]


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what a checkpoint is made of, for its card."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name not in ("card.json", "README.md")}


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


def ship(folder: Path, model: Any, processor: Any, card: dict[str, Any], work: Path) -> Path:
    """Write a finished checkpoint in half precision with its tokenizer or processor and its card; remove what the run kept."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_card(folder, card)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def loss_curve(steps: list[dict[str, float]]) -> list[list[float]]:
    """About a hundred points of a training curve, for a card: step and loss in nats, of records as in ``History.steps``."""
    return [[int(r["step"]), round(r["loss"], 4)] for r in steps[:: max(1, len(steps) // 100)]]


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write ``card.json`` (with the hashes of the checkpoint's files) and the README made from it."""
    card = card | {"sha256": file_hashes(folder)}
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    origin = f"fine-tuned from {card['recipe']['base']}" if "base" in card["recipe"] else "pre-trained from random weights"
    losses = [loss for _, loss in card["curve"]]
    falls = " → ".join(f"{losses[i]:.2f}" for i in (0, len(losses) // 4, len(losses) // 2, -1))
    held = ", ".join(f"{key} {value:.4g}" for key, value in card["held_out"].items() if key != "step")
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
        f"| machine | {card['machine']}, {card['threads']} thread(s), {card['seconds_of_last_run']:,} s |",
        f"| licence | {card['licence']} |",
    ]
    if teacher := card.get("teacher"):
        lines.append(f"| teacher | {teacher} |")
    if note := card.get("note"):
        lines += ["", note]
    if gain := card.get("fine_tuning"):
        lines += [
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
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
