"""A bot that answers by searching: BM25, vectors, both added up, and a refusal when nothing fits.

A saved bot is a folder: ``bot.json`` (entries and settings), ``vectors.faiss`` (one unit vector an entry) and ``encoder/``
(weights as safetensors, and the tokenizer). BM25 has no file of its own: it is made from the entries in a moment.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import RoadmapError
from common.packages import sha256

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

Entry = Mapping[str, str]  # with "law" and "answer"
Scores = NDArray[np.float64]
LONGEST_QUESTION = 300  # characters; a longer one is no question


def terms(text: str) -> list[str]:
    """What BM25 counts: every character and every pair of neighbours; punctuation is left out."""
    text = "".join(character for character in text.lower() if character.isalnum())
    return [*text, *(text[i : i + 2] for i in range(len(text) - 1))]


class BM25:
    """Okapi BM25 with an inverted index: for each term the texts that hold it and what it is worth there.

    Args:
        texts: What is searched.
        k1: How soon further occurrences of a term stop to count; 0 counts presence only.
        b: How much a long text is held against it, from 0 (not) to 1 (in proportion).

    Source: Robertson and Zaragoza (2009), The Probabilistic Relevance Framework: BM25 and Beyond.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        counts = [Counter(terms(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts])
        self.size, self.k1 = len(texts), k1
        self.postings: dict[str, list[tuple[int, float]]] = {}
        for i, count in enumerate(counts):
            norm = k1 * (1 - b + b * lengths[i] / lengths.mean())
            for term, n in count.items():
                self.postings.setdefault(term, []).append((i, n * (k1 + 1) / (n + norm)))
        self.idf = {t: math.log(1 + (self.size - len(p) + 0.5) / (len(p) + 0.5)) for t, p in self.postings.items()}

    def scores(self, question: str) -> Scores:
        """One score a text, 0 where no term is shared, shape (texts,)."""
        found = np.zeros(self.size)
        for term in terms(question):
            for i, worth in self.postings.get(term, ()):
                found[i] += self.idf[term] * worth
        return found

    def coverage(self, question: str) -> Scores:
        """Scores divided by what a text could reach that is full of every term of the question: between 0 and 1.

        A term that no text has counts as the rarest one: a question of unknown words must not look well covered.
        """
        unknown = math.log(1 + (self.size + 0.5) / 0.5)
        best = sum(self.idf.get(term, unknown) for term in terms(question)) * (self.k1 + 1)
        return self.scores(question) / best if best else self.scores(question)


class Dense:
    """An encoder that turns texts into unit vectors: the mean over real tokens, scaled to length 1."""

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int = 48) -> None:
        self.encoder, self.tokenizer, self.length = encoder, tokenizer, length

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """With gradients, in one batch; shape (texts, width)."""
        batch = self.tokenizer(list(texts), truncation=True, max_length=self.length, padding=True, return_tensors="pt")
        ids, mask = (batch[key].to(self.encoder.device) for key in ("input_ids", "attention_mask"))
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Without gradients, texts of like length together; shape (texts, width), in the order of the texts."""
        self.encoder.eval()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = np.empty((len(texts), self.encoder.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            found[some] = self.vectors([texts[i] for i in some]).float().cpu().numpy()
        return found


def shallow(encoder: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Keep the first layers of an encoder, so that it also saves and loads with so many."""
    stack = next(module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList))
    del stack[layers:]
    encoder.config.num_hidden_layers = len(stack)
    if getattr(encoder.config, "layer_types", None):
        encoder.config.layer_types = encoder.config.layer_types[: len(stack)]
    return encoder


def indexed(entry: Entry) -> str:
    """The text of an entry that is searched: its law's title counts too."""
    return f"《{entry['law']}》{entry['answer']}" if entry["law"] else entry["answer"]


@dataclass(frozen=True)
class Hit:
    """One entry that was found, and how well it fits."""

    entry: Entry
    score: float


class Bot:
    """Entries, two ways to search them, and from which score on an answer is given.

    Args:
        entries: Each with ``law`` (may be empty) and ``answer``.
        dense: Reads questions and entries alike.
        weight: Of the cosine beside the coverage of BM25.
        threshold: Score from which the bot answers; below it refuses.
        vectors: Of the entries, if they are known already; shape (entries, width).
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        dense: Dense,
        weight: float = 1.0,
        threshold: float = 0.0,
        vectors: NDArray[np.float32] | None = None,
    ) -> None:
        if not entries:
            raise RoadmapError("A bot needs at least one entry to search in.")
        self.entries, self.dense, self.weight, self.threshold = list(entries), dense, weight, threshold
        texts = [indexed(entry) for entry in self.entries]
        self.bm25 = BM25(texts)
        vectors = dense.encode(texts) if vectors is None else vectors
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(np.ascontiguousarray(vectors))

    def scores(self, questions: Sequence[str]) -> Scores:
        """Coverage of BM25 plus the weighted cosine, shape (questions, entries)."""
        cosines, places = self.index.search(self.dense.encode(questions), len(self.entries))
        dense = np.empty(cosines.shape)
        np.put_along_axis(dense, places, cosines, axis=1)  # faiss sorts; we want the entries' own order
        return np.stack([self.bm25.coverage(question) for question in questions]) + self.weight * dense

    def search(self, question: str, k: int = 3) -> list[Hit]:
        """The best entries, best first.

        Raises:
            RoadmapError: A question without a word, or one that is too long.
        """
        if not terms(question):
            raise RoadmapError("There is no word in this question; type one, such as 什么是竞买人？")
        if len(question) > LONGEST_QUESTION:
            raise RoadmapError(f"This question has {len(question)} characters; at most {LONGEST_QUESTION} are read.")
        scores = self.scores([question])[0]
        return [Hit(self.entries[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:k]]

    def answers(self, hits: Sequence[Hit]) -> bool:
        """Whether the best hit is good enough to be shown."""
        return bool(hits) and hits[0].score >= self.threshold

    def save(self, folder: str | Path) -> None:
        """Write the bot; an older one in the same folder is replaced."""
        folder = Path(folder)
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        self.dense.encoder.save_pretrained(folder / "encoder")
        self.dense.tokenizer.save_pretrained(folder / "encoder")
        faiss.write_index(self.index, str(folder / "vectors.faiss"))
        about = {
            "weight": self.weight,
            "threshold": self.threshold,
            "length": self.dense.length,
            "vectors": sha256(folder / "vectors.faiss"),
            "entries": [{"law": entry["law"], "answer": entry["answer"]} for entry in self.entries],
        }
        (folder / "bot.json").write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Bot:
        """A saved bot.

        Raises:
            RoadmapError: No bot there, or parts that do not belong together.
        """
        folder = Path(folder)
        if not (folder / "bot.json").is_file():
            raise RoadmapError(f"There is no bot in {folder} (no bot.json); make one by running the notebook of this lesson.")
        try:
            about = json.loads((folder / "bot.json").read_text(encoding="utf-8"))
            flat = faiss.read_index(str(folder / "vectors.faiss"))
            same = sha256(folder / "vectors.faiss") == about["vectors"] and flat.ntotal == len(about["entries"])
            encoder = AutoModel.from_pretrained(folder / "encoder", dtype=torch.float32)
            dense = Dense(encoder, AutoTokenizer.from_pretrained(folder / "encoder"), about["length"])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise RoadmapError(
                f"The bot in {folder} cannot be read ({str(error).splitlines()[0][:80]}); make it anew."
            ) from error
        if not same:
            raise RoadmapError(f"The vectors in {folder} do not belong to its entries; make the bot anew.")
        vectors = flat.reconstruct_n(0, flat.ntotal)
        return cls(about["entries"], dense, about["weight"], about["threshold"], vectors)


def lines(bot: Bot, question: str, k: int = 3) -> Iterator[str]:
    """What the bot says to a question, line by line."""
    hits = bot.search(question, k)
    if not bot.answers(hits):
        yield "抱歉，我没有找到可靠的答案。请换一种说法，或者问一个法律问题。"  # sorry, no reliable answer; try another wording
        yield f"(no answer: the best score {hits[0].score:.2f} is below {bot.threshold:.2f})"
        return
    for number, hit in enumerate(hits, 1):
        source = f"《{hit.entry['law']}》" if hit.entry["law"] else ""
        yield f"{number}. {source}{hit.entry['answer']}  ({hit.score:.2f})"
