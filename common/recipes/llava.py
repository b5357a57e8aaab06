"""How ``tiny-llava-emoji`` is made: a vision tower, a projector and a language model, taught to answer about pictures.

What is unusual: the scenes are composed anew in every step, from sets of icons that belong to the training split, and drawn
with outlines, colours and shapes that vary; so nothing can be learned by heart but the icons. Half of the
conversations describe a whole scene, which makes many answers from one look. A blind twin, trained the same way on blank
pages, tells how much of an accuracy is knowing the questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.data import load_data
from common.data.images import ASKED_BLANK, CELLS, EMPTY, ICONS, SIZE, Scene, draw, names, questions
from common.data.splits import bucket
from common.errors import RoadmapError
from common.models import MODELS_DIR
from common.recipes.skeleton import Workshop, loss_curve, muon_and_adamw
from common.text import IGNORE
from common.training import History, Precision, evaluating
from common.vision import IMAGE, as_tensor, build_llava, features, outlines, patches_of, vary

import torch
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.utils.data import DataLoader

NAME = "tiny-llava-emoji"
KINDS = ("count", "what", "where")
COUNTED = 0.3  # how often a scene is asked about its number of icons, which is learned at once
SOUGHT = 0.6  # how often an icon is asked for by name ("where"), which is learned last, and not by its corner ("what")
STAGES = ("read_steps", "align_steps", "steps")
SHORT = 6  # characters of a name that is taught
DESCRIBE = "图中有什么？"  # what is in the picture?
PLACES = "图案都在哪里？"  # where are the icons?
NAMING = "这是什么？"  # what is this?
PARTS = {"vision": "vision_tower", "projector": "multi_modal_projector", "language": "language_model"}


@dataclass(frozen=True)
class LlavaRecipe:
    """All that decides the checkpoint.

    Attributes:
        read_steps: Optimiser steps before all else: the tower alone, on what is in each cell.
        read_lr: Their peak learning rate, of Muon and of AdamW.
        align_steps: Optimiser steps of the first stage: the projector alone, from patches to the words for what they show.
        align_lr: Their peak learning rate.
        steps: Optimiser steps of the second stage: projector and language model, on scenes, and some names.
        lr: Their peak learning rate, of Muon and of AdamW.
        weight_decay: Of matrices, in every stage.
        described: Part of the second stage's scenes that are described cell by cell; the others are asked about.
        turns: The most questions about one scene.
        batch: Conversations per step; scenes per step of the first stage and before it are four times as many.
        named: Part of the second stage's conversations that are about a single emoji.
        plain: Part of the pictures that are drawn as they are, without variation.
        seed: Of the projector, the order and the scenes.
        precision: As in :func:`common.training.fit`.
    """

    read_steps: int = 800
    read_lr: float = 1e-3
    align_steps: int = 400
    align_lr: float = 3e-3
    steps: int = 3_000
    lr: float = 1e-3
    weight_decay: float = 0.1
    described: float = 0.25
    turns: int = 4
    batch: int = 32
    named: float = 0.125
    plain: float = 0.3
    seed: int = 42
    precision: Precision = "bf16"


def make_llava(
    folder: Path, *, recipe: LlavaRecipe | None = None, steps: int | None = None, force: bool = False, resume: bool = False
) -> Path:
    """Train the checkpoint and its blind twin, and write the checkpoint with its processor and a card about both.

    Args:
        folder, recipe, force, resume: As of :class:`Workshop`.
        steps: The most steps of each stage, for a trial.

    Raises:
        RoadmapError: A checkpoint in the way, or parts or pictures that cannot be had.
    """
    recipe = recipe or LlavaRecipe()
    if steps:
        recipe = replace(recipe, **{name: min(steps, getattr(recipe, name)) for name in STAGES})  # type: ignore[arg-type]
    run = Workshop(NAME, folder, recipe, force=force, resume=resume)
    model, processor, seeing = teach(run, recipe)
    twin, _, guessing = teach(run, recipe, blind=True)
    test = load_data("scenes")["test"]
    blind = _by_style(twin, processor, test, blind=True)
    history = seeing["scenes"]
    return run.ship(
        model,
        processor,
        history,
        recipe=asdict(recipe) | {"base": "tiny-clip-emoji and tiny-qwen-zh-chat", "steps": len(history.steps)},
        tokens_seen=sum(h.tokens for h in seeing.values()),
        held_out=_by_style(model, processor, test),
        held_out_kind="held-out scenes",
        earlier_curves={name: loss_curve(seeing[name].steps) for name in ("cells", "words")},
        blind=blind,
        blind_curve=loss_curve(guessing["scenes"].steps),
        blind_evaluations=guessing["scenes"].evaluations,
        data="fresh scenes of training icons and their names (load_data('scenes'), load_data('image_text'): training splits)",
        licence="Apache-2.0 for the weights; trained on Twemoji art (CC-BY 4.0) and names of Unicode CLDR",
        note=(
            "Held-out: accuracy of whole answers on the test scenes, by kind of question, in the style of training (twemoji) and "
            "in one never seen (openmoji). A blind twin, trained by the same recipe, for as many steps, on the same questions "
            "about blank pages, reaches " + ", ".join(f"{key} {value:.3g}" for key, value in blind.items()) + "."
        ),
    )


def teach(run: Workshop, recipe: LlavaRecipe, *, blind: bool = False) -> tuple[Any, Any, dict[str, History]]:
    """Build a model and train it: the tower on cells, the projector on words, then projector and language model on scenes.

    Args:
        run: Where.
        recipe: What to do.
        blind: Show blank pages, in training and in evaluation.

    Returns:
        The model, its processor, and the history of each stage.
    """
    model, processor = build_llava(MODELS_DIR / "tiny-clip-emoji", MODELS_DIR / "tiny-qwen-zh-chat", seed=recipe.seed)
    teacher, who = Teacher(processor, patches_of(model), recipe, blind=blind), "blind" if blind else "seeing"
    validation = load_data("scenes")["validation"]

    def stage(name: str, learner: Any, batches: Any, steps: int, lr: float, **options: Any) -> History:
        matrices = [p for n, p in learner.named_parameters() if p.requires_grad and p.ndim == 2 and ".layers." in n]
        if matrices:
            rates = {"lr": lr, "adamw_lr": lr, "weight_decay": recipe.weight_decay}
            options["optimizer"] = muon_and_adamw(learner, matrices, **rates)
        else:
            options |= {"lr": lr, "weight_decay": recipe.weight_decay}
        where = {"folder": run.work / who / name, "label": f"{NAME}, {who}, {name}"}
        return run.fit(
            learner, loader(steps, batches), max_steps=steps, warmup=0.05, precision=recipe.precision, **where, **options
        )

    train_only(model, ["vision"])
    read = stage("cells", Reading(model), teacher.cells, recipe.read_steps, recipe.read_lr)
    train_only(model, ["projector"])
    align = stage("words", Translating(model, processor.tokenizer), teacher.cells, recipe.align_steps, recipe.align_lr)
    train_only(model, ["projector", "language"])
    talk = stage(
        "scenes",
        Answering(model),
        teacher.talks,
        recipe.steps,
        recipe.lr,
        evaluate=lambda _: by_kind(correct(model, processor, validation, blind=blind), validation["kind"]),
        evaluate_every=200,
    )
    return model.eval(), processor, {"cells": read, "words": align, "scenes": talk}


# ------------------------------------------------------------------------------------------------ the model


def train_only(model: Any, parts: Iterable[str]) -> None:
    """Unfreeze the named :data:`PARTS` of a model and freeze all others.

    Raises:
        RoadmapError: A part that the model does not have.
    """
    if missing := set(parts) - set(PARTS):
        raise RoadmapError(f"A LLaVA has no part {', '.join(sorted(missing))}; it has {', '.join(PARTS)}.")
    names = {PARTS[part] for part in parts}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(names & set(name.split("."))))


# ------------------------------------------------------------------------------------------------ conversations


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Questions and answers about one picture; the picture stands before the first question."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        messages.append({"role": "user", "content": question if number else IMAGE + question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def stack(processor: Any, rows: Sequence[dict[str, list[int]]], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch, padded on the right: ``input_ids``, ``attention_mask``, ``labels`` and ``pixel_values``."""
    longest = max(len(row["labels"]) for row in rows)
    fills = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORE}
    batch = {key: torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows]) for key, fill in fills.items()}
    return batch | {"pixel_values": pixels}


# ------------------------------------------------------------------------------------------------ what it is taught with


def fresh_scene(rng: random.Random) -> Scene:
    """A scene as the data has them, whose set of icons belongs to the training split."""
    while True:
        icons = rng.sample(ICONS, rng.randint(1, 4))
        if bucket("".join(sorted(icons))) == "train":
            break
    cells = rng.sample([*icons, *[None] * (4 - len(icons))], 4)
    return Scene(tuple(cells), (0, icons[0]))


def interview(scene: Scene, rng: random.Random, turns: int = 2) -> list[tuple[str, str]]:
    """From one to ``turns`` questions with their answers, at most one about each cell."""
    asked = []
    for cell, icon in enumerate(scene.cells):
        if icon or rng.random() < ASKED_BLANK:
            _, what, where = questions(replace(scene, asked=(cell, icon or scene.icons[0])))
            asked.append(where if icon and rng.random() < SOUGHT else what)
    if not asked or rng.random() < COUNTED:
        asked.append(questions(scene)[0])
    rng.shuffle(asked)
    return [(question, answer) for _, question, answer in asked[:turns]]


def description(scene: Scene) -> tuple[str, str]:
    """The question for everything and its answer, cell by cell."""
    name = names()
    return DESCRIBE, "".join(f"{cell}{name[icon] if icon else EMPTY}" for cell, icon in zip(CELLS, scene.cells))


def places(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """The question for all places and its answer, icon by icon in random order, so that each place must be looked up."""
    name = names()
    there = [(icon, cell) for cell, icon in zip(CELLS, scene.cells) if icon]
    return PLACES, "，".join(f"{name[icon]}在{cell}" for icon, cell in rng.sample(there, len(there)))


class Teacher:
    """Draws batches: varied pictures of scenes and of single emoji, with conversations about them.

    Args:
        processor: Of :func:`build_llava`.
        patches: Vectors per picture.
        recipe: How many of what.
        blind: Every picture is a blank page; all else is the same.
    """

    def __init__(self, processor: Any, patches: int, recipe: LlavaRecipe, *, blind: bool = False) -> None:
        self.processor, self.patches, self.recipe, self.blind = processor, patches, recipe, blind
        rows = load_data("image_text")["train"]
        rows = rows.filter(lambda group, name: group != "Flags" and len(name) <= SHORT, input_columns=["group", "caption_zh"])
        self.names: list[str] = rows["caption_zh"][:]
        self.emoji = as_tensor(rows["image"][:])
        self.icons = as_tensor([draw(icon, "twemoji") for icon in ICONS])
        self.edges, self.icon_edges = outlines(self.emoji), outlines(self.icons)
        images = processor.image_processor
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (images.image_mean, images.image_std))

    def drawn(self, pictures: torch.Tensor, edges: torch.Tensor, small: float) -> torch.Tensor:
        """Some as they are, the others varied; ``(pictures, 3, height, width)``."""
        if not len(pictures):
            return pictures
        plain = torch.rand(len(pictures), 1, 1, 1) < self.recipe.plain
        return torch.where(plain, pictures, vary(pictures, edges, small))

    def scenes(self, count: int) -> tuple[list[Scene], torch.Tensor]:
        """Fresh scenes and their pictures."""
        rng = random.Random(int(torch.randint(2**31, ())))
        scenes = [fresh_scene(rng) for _ in range(count)]
        where = [(i, cell, ICONS.index(icon)) for i, s in enumerate(scenes) for cell, icon in enumerate(s.cells) if icon]
        chosen = [icon for _, _, icon in where]
        small = avg_pool2d(self.drawn(self.icons[chosen], self.icon_edges[chosen], 0.0), 2)
        pages, half = torch.ones(count, 3, SIZE, SIZE), SIZE // 2
        for (i, cell, _), icon in zip(where, small):
            y, x = cell // 2 * half, cell % 2 * half
            pages[i, :, y : y + half, x : x + half] = icon
        return scenes, pages

    def named(self, count: int) -> tuple[list[list[dict[str, str]]], torch.Tensor]:
        """Conversations that name a single emoji, and their pictures."""
        chosen = torch.randint(len(self.names), (count,)).tolist()
        talks = [conversation((NAMING, self.names[i])) for i in chosen]
        return talks, self.drawn(self.emoji[chosen], self.edges[chosen], 0.25)

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """As the tower wants them; blank pages for a blind model."""
        return ((torch.ones_like(pictures) if self.blind else pictures) - self.mean) / self.std

    def cells(self) -> dict[str, torch.Tensor]:
        """Scenes, and for every patch its cell and the number of the icon there (the last one: none), ``(batch, patches)``."""
        scenes, pages = self.scenes(4 * self.recipe.batch)
        there = torch.tensor([[ICONS.index(icon) if icon else len(ICONS) for icon in scene.cells] for scene in scenes])
        side = round(self.patches**0.5)
        row, column = torch.arange(side)[:, None] * 2 // side, torch.arange(side)[None] * 2 // side
        cell = (2 * row + column).flatten()
        return {"pixel_values": self.pixels(pages), "labels": there[:, cell], "cells": cell.expand(len(scenes), -1)}

    def talks(self) -> dict[str, torch.Tensor]:
        """Conversations: some name single emoji; of the others a part describes a scene, the rest asks about it."""
        alone = round(self.recipe.named * self.recipe.batch)
        (scenes, pages), (more, single) = self.scenes(self.recipe.batch - alone), self.named(alone)
        rng, told = random.Random(int(torch.randint(2**31, ()))), round(self.recipe.described * len(scenes))
        about = []
        for i, scene in enumerate(scenes):
            whole = description(scene) if i % 2 else places(scene, rng)
            about.append(conversation(*([whole] if i < told else interview(scene, rng, self.recipe.turns))))
        rows = [features(self.processor, messages, self.patches) for messages in about + more]
        return stack(self.processor, rows, self.pixels(torch.cat([pages, single])))


def loader(steps: int, draw_batch: Callable[[], dict[str, torch.Tensor]]) -> DataLoader[Any]:
    """One fresh batch per step, as :func:`common.training.fit` wants them: drawn in the collate function."""
    return DataLoader(list(range(steps)), batch_size=1, collate_fn=lambda _: draw_batch())  # type: ignore[arg-type]


class Reading(torch.nn.Module):
    """The vision tower with two linear guesses, from each patch alone: what is in its cell, and which cell that is.

    CLIP has learned to sum up a page in its class token. A language model reads the patches, so what is where must be there.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.layer = model.model.vision_tower, model.config.vision_feature_layer
        self.what = torch.nn.Linear(model.config.vision_config.hidden_size, len(ICONS) + 1)
        self.where = torch.nn.Linear(model.config.vision_config.hidden_size, len(CELLS))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, cells: torch.Tensor) -> Any:
        """Logits ``(batch, patches, icons + 1)``; ``labels`` and ``cells`` are ``(batch, patches)``."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        what, where = self.what(states), self.where(states)
        loss = cross_entropy(what.flatten(0, 1), labels.flatten()) + cross_entropy(where.flatten(0, 1), cells.flatten())
        return SimpleNamespace(loss=loss, logits=what)


class Translating(torch.nn.Module):
    """The projector, drawn to give each patch the mean embedding of the words for what is in its cell, and for the cell.

    A language model that gets its own words back can copy them; from captions alone it takes a tiny one thousands of steps
    to find out that vectors are words.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.tower, self.layer = model.model.vision_tower, model.config.vision_feature_layer
        self.projector = model.model.multi_modal_projector
        table = model.get_input_embeddings().weight.detach()

        def embeddings(words: list[str]) -> torch.Tensor:
            ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
            return torch.stack([table[i].mean(0) for i in ids])

        self.register_buffer("icons", embeddings([*(names()[icon] for icon in ICONS), EMPTY]), persistent=False)
        self.register_buffer("places", embeddings(list(CELLS)), persistent=False)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, cells: torch.Tensor) -> Any:
        """Vectors ``(batch, patches, width of the language model)``; the loss is 1 for a projector that ignores its input."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        made, wanted = self.projector(states), self.icons[labels] + self.places[cells]  # type: ignore[index]
        away = wanted - wanted.mean((0, 1))
        return SimpleNamespace(loss=(made - wanted).square().mean() / away.square().mean().clamp(min=1e-9), logits=made)


class Answering(torch.nn.Module):
    """The model with its loss computed where there are labels only: a third less work, and the same number."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> Any:
        """Hidden states ``(batch, length, width)``; ``labels`` are one token ahead of them."""
        hidden = self.model.model(**inputs).last_hidden_state[:, :-1]
        chosen = labels[:, 1:] != IGNORE
        logits = self.model.lm_head(hidden[chosen])  # (labels, vocabulary)
        return SimpleNamespace(loss=cross_entropy(logits, labels[:, 1:][chosen]), logits=logits)


# ------------------------------------------------------------------------------------------------ what it has learned


def blank_page(image: Any) -> Any:
    """A white picture of the same size."""
    from PIL import Image

    return Image.new("RGB", image.size, "white")


def correct(model: Any, processor: Any, rows: Any, *, blind: bool = False, batch: int = 64) -> list[bool]:
    """For each question whether the answer, end token included, is the most likely one token by token.

    That is what greedy generation would write, found in one pass.

    Args:
        model: Of :func:`build_llava`.
        processor: Its processor.
        rows: With ``image``, ``question`` and ``answer``.
        blind: Show a blank page instead of the picture.
        batch: Questions at a time.
    """
    found: list[bool] = []
    patches = patches_of(model)
    with evaluating(model):
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            pictures = [blank_page(image) if blind else image for image in part["image"]]
            pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            talks = [conversation(turn) for turn in zip(part["question"], part["answer"])]
            inputs = stack(processor, [features(processor, messages, patches) for messages in talks], pixels)
            labels = inputs.pop("labels")[:, 1:]
            guesses = model.lm_head(model.model(**inputs).last_hidden_state[:, :-1]).argmax(-1)
            found += ((guesses == labels) | (labels == IGNORE)).all(1).tolist()
    return found


def by_kind(right: Sequence[bool], kinds: Sequence[str]) -> dict[str, float]:
    """Accuracy of each kind of question, and their mean as ``accuracy``."""
    found = {kind: [r for r, k in zip(right, kinds) if k == kind] for kind in dict.fromkeys(kinds)}
    parts = {kind: sum(values) / len(values) for kind, values in sorted(found.items())}
    return {"accuracy": sum(parts.values()) / len(parts), **parts}


def _by_style(model: Any, processor: Any, rows: Any, *, blind: bool = False) -> dict[str, float]:
    """Accuracies of each style, such as ``what_openmoji``."""
    right = correct(model, processor, rows, blind=blind)
    found: dict[str, float] = {}
    for style in dict.fromkeys(rows["style"]):
        here = [i for i, s in enumerate(rows["style"]) if s == style]
        parts = by_kind([right[i] for i in here], [rows["kind"][i] for i in here])
        found |= {f"{key}_{style}": value for key, value in parts.items()}
    return found
