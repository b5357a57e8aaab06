"""How ``tiny-bert-zh`` is made: from random weights, by hidden words and by what a large encoder makes of the same text.

What is unusual: characters are tokens (Chinese named entities and answers begin and end anywhere); the encoder is
ModernBERT, because at this size classic BERT stays at the unigram plateau for hours; and it learns from two sources at
once. Hidden words alone teach what stands beside what: a linear probe on such vectors finds no more about a review than in
random weights. So every token also learns to predict the inner states of a real encoder (:mod:`common.recipes.teacher`) at
the same place of the same text. That encoder has seen every character of it. The teacher has never seen a label of any task.
Muon in place of AdamW was tried and learned no more per second on a CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.data import load_data
from common.hardware import set_seed
from common.recipes.distillation import WIDTH, TeacherStates, mixes, pieces, teacher_facts, teacher_states
from common.recipes.skeleton import Workshop
from common.text import pack_blocks
from common.training import Precision, evaluating

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

NAME = "tiny-bert-zh"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class BertRecipe:
    """All that decides the checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch: Pieces of text per step.
        lr: Peak learning rate of AdamW.
        mask: Share of the tokens that are hidden from the student; the teacher has seen all of them.
        words: Weight of the loss of hidden words (nats) beside those of the teacher's states, which begin near 1.
        inner: Weight of the teacher's states at the layers below the last, so that a model cut to its first layers is
            of use as well.
        mixes: Texts made of clauses of one or two reviews, for each review. Their labels are not needed, because the
            teacher says what they mean.
        seed: Of weights, order, masks and mixes.
        precision: As in :func:`common.training.fit`; bf16 pays on GPUs and on processors that multiply it (avx512_bf16).
    """

    steps: int = 9_000
    batch: int = 48
    lr: float = 2e-3
    mask: float = 0.15
    words: float = 0.5
    inner: float = 0.5
    mixes: int = 4
    seed: int = 42
    precision: Precision = "bf16"


def make_bert(
    folder: Path, *, recipe: BertRecipe | None = None, steps: int | None = None, force: bool = False, resume: bool = False
) -> Path:
    """Train the checkpoint and write it with its tokenizer and its card; arguments as of :class:`Workshop`.

    Raises:
        RoadmapError: A checkpoint in the way, or texts or the teacher that cannot be had.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler

    recipe = recipe or BertRecipe()
    run = Workshop(NAME, folder, recipe, steps=steps, force=force, resume=resume)
    corpus = load_data("corpus")
    texts = corpus["train"]["text"][:]
    tokenizer = character_tokenizer(texts)
    taught = pieces(texts) + mixes(load_data("sentiment")["train"]["text"][:], recipe.mixes, recipe.seed)
    unseen = pieces(corpus["validation"]["text"][:])[:512]
    set_seed(recipe.seed)
    states, exam = teacher_states(tokenizer, taught, unseen, run.work / "states", precision=recipe.precision)
    held_out = held_out_blocks(tokenizer, corpus["validation"]["text"][:])[:512]
    model = encoder_model(tokenizer)
    student = Student(model, states, recipe)
    train: DataLoader[Any] = DataLoader(
        states,
        batch_size=recipe.batch,
        sampler=LengthGroupedSampler(recipe.batch, lengths=states.lengths),
        drop_last=True,
        collate_fn=masking(tokenizer, recipe.mask),
    )
    history = run.fit(
        student,
        train,
        lr=recipe.lr,
        warmup=0.03,
        precision=recipe.precision,
        evaluate=lambda _: masked_accuracy(model, tokenizer, held_out) | student.examine(exam, tokenizer),
        evaluate_every=1_000,
    )
    return run.ship(model, tokenizer, history, **teacher_facts(states))


# ------------------------------------------------------------------------------------------------ tokenizer and model


def character_tokenizer(texts: list[str], *, at_least: int = 5) -> Any:
    """A WordPiece tokenizer whose pieces are single characters, those seen at least ``at_least`` times.

    Counted here rather than trained: ``WordPieceTrainer`` gives another vocabulary in every process.
    """
    from transformers import BertTokenizer

    counts = Counter(character for text in texts for character in text.lower() if not character.isspace())
    kept = sorted((c for c, n in counts.items() if n >= at_least), key=lambda c: (-counts[c], c))
    inside = [f"##{c}" for c in kept if c.isascii() and c.isalnum()]  # a word's later letters and digits
    vocab = {token: i for i, token in enumerate([*SPECIAL, *kept, *inside])}
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=512)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # ModernBERT has no token types
    return tokenizer


def encoder_model(tokenizer: Any) -> Any:
    """ModernBERT, 4 layers of width 256, every layer global: 3.4 million parameters."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        layer_types=["full_attention"] * 4,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
        max_position_embeddings=512,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    model = ModernBertForMaskedLM(config)
    model.set_attn_implementation("eager")  # in bf16 on a CPU a third faster than torch's fused attention
    return model


# ------------------------------------------------------------------------------------------------ learning


class Student(torch.nn.Module):
    """The encoder, and a linear map from each of its layers to the teacher's states, which is thrown away in the end.

    The loss is a sum of four. Hidden words (cross-entropy). The distance of the last layer's states to the teacher's
    (squared, 1 for the mean state). That of the layers below. And 1 minus the cosine of the vectors of whole texts: texts
    differ less than tokens do, and this would be lost without a loss of its own.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, model: Any, states: TeacherStates, recipe: BertRecipe):
        super().__init__()
        width, layers = model.config.hidden_size, model.config.num_hidden_layers
        self.model, self.words, self.inner, self.variance = model, recipe.words, recipe.inner, states.variance
        self.maps = torch.nn.ModuleList(torch.nn.Linear(width, WIDTH) for _ in range(layers))
        self.whole = torch.nn.Linear(width, WIDTH)
        self.register_buffer("mean", states.mean)
        self.register_buffer("deviation", states.deviation)

    def parts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, states: torch.Tensor, vector: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The last hidden states ``(batch, length, width)``, and the distances to what the teacher makes of the texts.

        Args:
            input_ids, attention_mask: ``(batch, length)``.
            states: The teacher's, ``(batch, length, WIDTH)``.
            vector: The mean of the teacher's states over its own tokens, ``(batch, WIDTH)``.
        """
        encoder = self.model.model
        out = encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        last, inside = out.last_hidden_state, attention_mask[..., None].float()
        count = inside.sum()
        layers = [encoder.final_norm(hidden) for hidden in out.hidden_states[1 : len(self.maps)]] + [last]
        distances = [
            ((there(hidden).float() - states).square() * inside).sum() / (count * WIDTH * self.variance)
            for there, hidden in zip(self.maps, layers)
        ]
        own = (last * inside).sum(1) / inside.sum(1)
        cosine = F.cosine_similarity(self.whole(own).float(), (vector - self.mean) / self.deviation, dim=1).mean()
        return last, {"states": distances[-1], "inner": torch.stack(distances[:-1]).mean(), "vector": 1 - cosine}

    def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> Any:
        last, distance = self.parts(**batch)
        hidden = labels != -100
        logits = self.model.decoder(self.model.head(last[hidden]))
        words = F.cross_entropy(logits.float(), labels[hidden]) if hidden.any() else 0.0
        return SimpleNamespace(loss=distance["states"] + distance["vector"] + self.inner * distance["inner"] + self.words * words)

    def examine(self, exam: TeacherStates, tokenizer: Any) -> dict[str, float]:
        """Part of the teacher's states that is explained on texts never seen, and the cosine to its vectors."""
        home, sums = self.mean.device, {"states": 0.0, "vector": 0.0}
        collate = masking(tokenizer, 0.0)
        with evaluating(self):
            for start in range(0, len(exam), 64):
                batch = collate([exam[i] for i in range(start, min(start + 64, len(exam)))])
                rows = len(batch.pop("labels"))
                _, distance = self.parts(**{key: value.to(home) for key, value in batch.items()})
                sums = {key: sums[key] + float(distance[key]) * rows for key in sums}
        return {"states_explained": 1 - sums["states"] / len(exam), "teacher_cosine": 1 - sums["vector"] / len(exam)}


def masking(tokenizer: Any, part: float) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Collate function: pads texts and states, hides tokens, and labels what is hidden."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        ids, labels = mask_tokens(batch["input_ids"], tokenizer, part)
        states = torch.nn.utils.rnn.pad_sequence([row["states"] for row in rows], batch_first=True)
        vector = torch.stack([row["vector"] for row in rows])
        inputs = {"input_ids": ids, "attention_mask": batch["attention_mask"]}
        return inputs | {"labels": labels, "states": states, "vector": vector}

    return collate


def mask_tokens(
    ids: torch.Tensor, tokenizer: Any, part: float, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's masking: of the chosen tokens 80 % become ``[MASK]``, 10 % a random token, 10 % stay.

    Args:
        ids: Token ids, shape ``(batch, length)``; special tokens are never chosen.
        part: Part of the tokens to choose.
        generator: Where the randomness comes from; torch's own by default.

    Returns:
        The masked ids and the labels (-100 where nothing is to be predicted), both of the shape of ``ids``.

    Source:
        Devlin et al., "BERT" (2019), section 3.1.
    """
    chosen = (torch.rand(ids.shape, generator=generator) < part) & (ids >= len(SPECIAL))
    how = torch.rand(ids.shape, generator=generator)
    masked = ids.masked_fill(chosen & (how < 0.8), tokenizer.mask_token_id)
    other = torch.randint(len(SPECIAL), len(tokenizer), ids.shape, generator=generator)
    masked = torch.where(chosen & (how >= 0.8) & (how < 0.9), other, masked)
    return masked, ids.masked_fill(~chosen, -100)


def held_out_blocks(tokenizer: Any, texts: list[str], length: int = 64) -> torch.Tensor:
    """Texts one after another in blocks, shape ``(blocks, length)``, each beginning with ``[CLS]``."""
    return torch.tensor(pack_blocks(tokenizer, texts, length, tokenizer.sep_token_id, tokenizer.cls_token_id))


def masked_accuracy(model: torch.nn.Module, tokenizer: Any, ids: torch.Tensor) -> dict[str, float]:
    """Part of masked tokens (15 %, fixed seed) of :func:`held_out_blocks` that the model gets exactly right; its loss in nats."""
    generator = torch.Generator().manual_seed(0)
    masked, labels = mask_tokens(ids, tokenizer, 0.15, generator)
    home, right, loss = next(model.parameters()).device, 0, 0.0
    with evaluating(model):
        for x, y in zip(masked.split(64), labels.split(64)):
            logits = model(input_ids=x.to(home)).logits.float().cpu()[y != -100]
            right += int((logits.argmax(-1) == y[y != -100]).sum())
            loss += float(F.cross_entropy(logits, y[y != -100], reduction="sum"))
    count = int((labels != -100).sum())
    return {"masked_accuracy": right / count, "loss": loss / count}
