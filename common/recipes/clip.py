"""How ``tiny-clip-emoji`` is made: an image tower and a text tower, trained to agree on pictures and their names.

What is unusual: each concept has one picture, in one drawing style, so what would otherwise be variety in the data is
variety made here: outlines, colours, sizes, places, sharpness and small deformations, new ones in every step. The other
style, and the concepts that are held out, are never seen in training. Faces, persons, signs and flags are left out: at this
size they differ by details, and they would take more than half of the training.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data import load_data
from common.hardware import set_seed
from common.recipes.skeleton import Workshop, muon_and_adamw
from common.vision import as_tensor, embed, outlines, vary

import torch
from torch.nn.functional import interpolate, normalize
from torch.utils.data import DataLoader

NAME = "tiny-clip-emoji"
SIZE, PATCH = 64, 16  # pixels: 16 patches, so that a language model can afford to read them all
MEAN, STD = [1.0] * 3, [0.5] * 3  # white paper becomes 0, so that only ink is seen
THINGS = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")  # Unicode's groups
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST = 24  # tokens of a name
HOTTEST = math.log(100)  # the temperature must not fall below 1/100 (Radford et al. 2021, section 2.5)


@dataclass(frozen=True)
class ClipRecipe:
    """All that decides the checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch: Pairs per step; each is told apart from all others of its batch.
        lr: Peak learning rate of Muon, for the matrices of the layers.
        adamw_lr: Peak learning rate of AdamW, for all else.
        weight_decay: Of matrices, for both.
        small: Part of the pictures that are drawn small, somewhere on the page, as in scenes.
        blur: The coarsest pictures: so many pixels become one. A batch has one sharpness.
        seed: Of weights, order and variety.
    """

    steps: int = 3_600
    batch: int = 128
    lr: float = 3e-3
    adamw_lr: float = 2e-3
    weight_decay: float = 0.3
    small: float = 0.25
    blur: int = 4
    seed: int = 42


def make_clip(
    folder: Path, *, recipe: ClipRecipe | None = None, steps: int | None = None, force: bool = False, resume: bool = False
) -> Path:
    """Train the checkpoint and write it with its processor and its card; arguments as of :class:`Workshop`.

    Raises:
        RoadmapError: A checkpoint in the way, or pictures that cannot be had.
    """
    recipe = recipe or ClipRecipe()
    run = Workshop(NAME, folder, recipe, steps=steps, force=force, resume=resume)
    data = {split: things(rows) for split, rows in load_data("image_text").items()}
    processor = clip_processor(emoji_tokenizer([*data["train"]["caption_zh"], *data["train"]["caption_en"]]))
    set_seed(recipe.seed)
    model = clip_model(processor.tokenizer)
    history = run.fit(
        _Clamped(model),
        pairs_loader(data["train"], processor.tokenizer, recipe),
        optimizer=optimizers(model, recipe),
        warmup=0.03,
        evaluate=lambda _: transfer_recall(model, processor, data["train"], data["validation"]),
        evaluate_every=1_000,
    )
    return run.ship(
        model,
        processor,
        history,
        held_out=transfer_recall(model, processor, data["train"], data["test"]),
        held_out_kind="held-out pictures",
        opponent=against_nearest_picture(model, processor, data["train"], data["test"]),
        data=(
            f"load_data('image_text'), training split, things only: {len(data['train'])} Twemoji pictures with their Chinese and "
            "English names"
        ),
        licence="Apache-2.0 for the weights; trained on Twemoji art (CC-BY 4.0) and names of Unicode CLDR",
        note=(
            f"Held-out: recall among the names of all {len(data['train'])} concepts of the training split, for pictures of the "
            "test split in the other drawing style (OpenMoji), of concepts that were trained on in Twemoji's. "
            f"Chance is k / {len(data['train'])}."
        ),
    )


# ------------------------------------------------------------------------------------------------ the parts


def emoji_tokenizer(names: list[str]) -> Any:
    """Chinese characters and whole English words that occur in the names; other words are spelled in letters.

    The text tower reads a name out at its ``[SEP]``, which is why that has to be the end-of-sequence token.
    """
    from transformers import BertTokenizer

    pieces = {piece for name in names for piece in re.findall(r"[a-z]+|[^\sa-z]", name.lower())}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    spelled = [*letters, *(f"##{c}" for c in letters)]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *spelled, *sorted(pieces - set(letters))])}
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=LONGEST)
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def clip_processor(tokenizer: Any) -> Any:
    """Pictures as the towers want them: RGB, ``SIZE`` pixels square, around zero; and the tokenizer."""
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False, image_mean=MEAN, image_std=STD)
    return CLIPProcessor(images, tokenizer)


def clip_model(tokenizer: Any) -> Any:
    """CLIP with 3 layers of width 128 for pictures (16 patches) and 2 for names: 1.4 million parameters.

    The filters that first meet a patch begin smooth instead of as noise of single pixels: styles agree on coarse shapes
    rather than on pixels, and the loss falls faster.
    """
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 128}
    special = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "num_hidden_layers": 2}
    pictures = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": 3}
    model = CLIPModel(CLIPConfig(text_config=tower | special | words, vision_config=tower | pictures, projection_dim=128))
    first = model.vision_model.embeddings.patch_embedding.weight
    with torch.no_grad():
        coarse = interpolate(torch.randn(len(first), 3, 3, 3), (PATCH, PATCH), mode="bicubic", align_corners=False)
        first.copy_(coarse / coarse.std() * first.std())
    return model


def optimizers(model: Any, recipe: ClipRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers of both towers, AdamW for embeddings, norms, biases, projections and temperature."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    return muon_and_adamw(model, matrices, lr=recipe.lr, adamw_lr=recipe.adamw_lr, weight_decay=recipe.weight_decay)


class _Clamped(torch.nn.Module):
    """The model with its contrastive loss, and its temperature kept from freezing."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> Any:
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=HOTTEST)
        return self.model(**batch, return_loss=True)


# ------------------------------------------------------------------------------------------------ variety


def pairs_loader(rows: Any, tokenizer: Any, recipe: ClipRecipe) -> DataLoader[Any]:
    """Batches of varied pictures with their Chinese or English name, by the toss of a coin."""
    pictures = as_tensor(rows["image"][:])
    edges = outlines(pictures)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    names = [rows["caption_zh"][:], rows["caption_en"][:]]

    def collate(chosen: list[int]) -> dict[str, torch.Tensor]:
        coins = torch.randint(2, (len(chosen),)).tolist()
        text = tokenizer([names[coin][i] for coin, i in zip(coins, chosen)], padding=True, truncation=True, return_tensors="pt")
        varied = vary(pictures[chosen], edges[chosen], recipe.small, blur=int(torch.randint(1, recipe.blur + 1, ())))
        return {**text, "pixel_values": (varied - mean) / std}

    return DataLoader(
        list(range(len(rows))),  # type: ignore[arg-type]
        batch_size=recipe.batch,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
    )


# ------------------------------------------------------------------------------------------------ what it has learned


def transfer_recall(model: Any, processor: Any, train: Any, held_out: Any) -> dict[str, float]:
    """Recall of the right name among all training names, for pictures of trained concepts in the other style."""
    rows, gold = _of_trained_concepts(train, held_out)
    pictures = embed(model, processor, images=rows["image"][:])
    found = {}
    for language in ("zh", "en"):
        scores = pictures @ embed(model, processor, text=train[f"caption_{language}"][:]).T
        for k in (1, 5):
            found[f"recall_at_{k}_{language}"] = float(among_first(scores, gold, k).float().mean())
    return found


def against_nearest_picture(model: Any, processor: Any, train: Any, held_out: Any, k: int = 5) -> dict[str, float]:
    """The same pictures named by the training picture that is most alike, and a paired test of the two (recall@k).

    Alike is the cosine of 16 x 16 pixels after their mean is taken off: it learns nothing, and both styles share it. The
    test is McNemar's, exact: of the pictures that only one of the two gets right, how unlikely is this division?
    """
    from scipy.stats import binomtest

    rows, gold = _of_trained_concepts(train, held_out)
    small = [interpolate(as_tensor(part["image"][:]), (16, 16), mode="area").flatten(1) for part in (rows, train)]
    ours, theirs = (normalize(pixels - pixels.mean(1, keepdim=True), dim=1) for pixels in small)
    nearest = among_first(ours @ theirs.T, gold, k)
    names = embed(model, processor, text=train["caption_zh"][:])
    learned = among_first(embed(model, processor, images=rows["image"][:]) @ names.T, gold, k)
    only = int((learned & ~nearest).sum()), int((nearest & ~learned).sum())
    p = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    shares = {"clip": float(learned.float().mean()), "nearest_picture": float(nearest.float().mean())}
    return {"pictures": len(gold), **shares, "only_clip": only[0], "only_nearest_picture": only[1], "p": float(p)}


def among_first(scores: torch.Tensor, gold: torch.Tensor, k: int) -> torch.Tensor:
    """Whether the right column of each row, ``(rows,)``, has one of the ``k`` highest scores ``(rows, columns)``."""
    return (scores > scores.gather(1, gold[:, None])).sum(1) < k


def _of_trained_concepts(train: Any, held_out: Any) -> tuple[Any, torch.Tensor]:
    """The held-out rows whose concept is in training, and the place of each there."""
    place = {emoji: i for i, emoji in enumerate(train["emoji"])}
    rows = held_out.filter(lambda emoji: emoji in place, input_columns="emoji")
    return rows, torch.tensor([place[emoji] for emoji in rows["emoji"]])


def things(rows: Any) -> Any:
    """The rows whose group is one of :data:`THINGS`."""
    return rows.filter(lambda group: group in THINGS, input_columns="group")
