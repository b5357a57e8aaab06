"""``checkpoint(name)``: a shipped tiny checkpoint at tiny scale, a Hub model at full scale.

The tiny checkpoints in ``assets/models`` are really pre-trained (:mod:`common.recipes`) and stored in half
precision; each folder has a card with its data, licence, steps, curve and held-out figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
