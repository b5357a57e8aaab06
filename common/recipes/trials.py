"""Every shipped checkpoint by name: pre-trained by a recipe of its own, or fine-tuned from one that is; and what that gives.

``python -m common pretrain NAME`` repeats it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.chat import chat_loader, exact_match
from common.data import NER_TAGS, load_data
from common.errors import RoadmapError, unknown
from common.hardware import set_seed
from common.metrics import seqeval
from common.models import MODELS_DIR, from_scratch, read_card
from common.recipes.bert import NAME as BERT
from common.recipes.bert import make_bert
from common.recipes.clip import NAME as CLIP
from common.recipes.clip import ClipRecipe, make_clip
from common.recipes.llava import NAME as LLAVA
from common.recipes.llava import make_llava
from common.recipes.qwen import NAME as QWEN
from common.recipes.qwen import make_qwen
from common.recipes.skeleton import Workshop, write_card
from common.recipes.t5 import NAME as T5
from common.recipes.t5 import make_t5
from common.text import align_labels
from common.training import History, Precision, fit, predict

import numpy as np
import torch
from torch.utils.data import DataLoader

RECIPES: dict[str, Callable[..., Path]] = {BERT: make_bert, QWEN: make_qwen, T5: make_t5, CLIP: make_clip, LLAVA: make_llava}


@dataclass(frozen=True)
class Trial:
    """One fine-tuning recipe, used from the checkpoint and from random weights alike."""

    task: str
    examples: int | None
    epochs: int
    lr: float
    length: int = 128
    batch: int = 16
    precision: Precision = "bf16"

    @property
    def metric(self) -> str:
        """What it is judged by."""
        return {"ner": "strict entity F1", "instructions": "exact match"}.get(self.task, "accuracy")


NAMES = Trial("ner", 3_000, epochs=4, lr=2e-3)
REVIEWS = Trial("sentiment", None, epochs=2, lr=4e-4)
FEW_REVIEWS = Trial("sentiment", 4_000, epochs=2, lr=1e-3)
DECODER_REVIEWS = Trial("sentiment", 4_000, epochs=2, lr=5e-4)  # half the rate: it suits the decoder better than 1e-3
CHATS = Trial("instructions", None, epochs=2, lr=1e-3, length=256, batch=32)

TRIALS = {"tiny-bert-zh": (NAMES, FEW_REVIEWS, REVIEWS), "tiny-qwen-zh": (DECODER_REVIEWS,)}
FINE_TUNED = {
    "tiny-bert-zh-ner": ("tiny-bert-zh", NAMES),
    "tiny-bert-zh-sentiment": ("tiny-bert-zh", REVIEWS),
    "tiny-qwen-zh-chat": ("tiny-qwen-zh", CHATS),
}
NOT_TAUGHT = ("person", "sentiment_english")  # kinds of instruction that the chat model has never seen: lessons teach them


def make(name: str, *, steps: int | None = None, out: Path | None = None, force: bool = False, resume: bool = False) -> Path:
    """Make a shipped checkpoint anew: pre-train it, or fine-tune it from the one it stands on.

    Args:
        name: A key of :data:`RECIPES` or :data:`FINE_TUNED`.
        steps: Instead of the recipe's, for a trial (pre-training only).
        out: Where the checkpoint goes; by default its place in ``assets/models``.
        force: Replace a checkpoint that is there.
        resume: Continue an interrupted run of the same name (pre-training only).

    Returns:
        The folder.

    Raises:
        RoadmapError: Unknown name, a checkpoint in the way, or an option that a fine-tuned checkpoint does not have.
    """
    if name not in (*RECIPES, *FINE_TUNED):
        raise unknown("checkpoint recipe", name, [*RECIPES, *FINE_TUNED])
    folder = (out or MODELS_DIR / name).resolve()
    if name in RECIPES:
        return RECIPES[name](folder, steps=steps, force=force, resume=resume)
    if steps or resume:
        raise RoadmapError(f"--steps and --resume are for pre-training; {name} is fine-tuned in one go: leave them out.")
    return _specialise(name, folder, force=force)


def _specialise(name: str, folder: Path, *, force: bool) -> Path:
    """Fine-tune a shipped checkpoint on one task and write it with its card."""
    base, trial = FINE_TUNED[name]
    run = Workshop(name, folder, trial, force=force)
    tuned = (_chat if trial.task == "instructions" else fine_tune)(MODELS_DIR / base, trial, pretrained=True, seed=run.seed)
    return run.ship(
        tuned.model,
        tuned.tokenizer,
        tuned.history,
        recipe=asdict(trial) | {"base": base, "steps": len(tuned.history.steps)},
        held_out={f"test {trial.metric}": tuned.score},
        data=f"load_data('{trial.task}'), {trial.examples or 'all'} training examples",
        licence=f"Apache-2.0 for the weights; the texts' own terms are in `python -m common data {trial.task}`",
        **({"by_kind": tuned.by_kind, "not_taught": NOT_TAUGHT} if tuned.by_kind else {}),
    )


# ------------------------------------------------------------------------------------------------ what it gives


def measure(name: str, seeds: tuple[int, ...] = (0, 1, 2)) -> Path:
    """Fine-tune from the checkpoint and from random weights, and write mean and deviation on test into the card.

    Beside them stands what counting characters reaches, where the task is to classify texts.

    Raises:
        RoadmapError: A name without trials, or a checkpoint that is missing.
    """
    if name not in (*TRIALS, CLIP):
        raise unknown("checkpoint to measure", name, [*TRIALS, CLIP])
    card, folder = read_card(name), MODELS_DIR / name
    if name == CLIP:
        card["seeds"] = {str(seed): _clip_again(seed) for seed in seeds}
        write_card(folder, card)
        return folder
    card["probe"] = {"examples": 4_000, "accuracy": probe_accuracy(folder, 4_000)}
    card["fine_tuning"] = []
    for trial in TRIALS[name]:
        row: dict[str, Any] = asdict(trial) | {"metric": trial.metric}
        for start in ("random", "pretrained"):
            values = [fine_tune(folder, trial, pretrained=start == "pretrained", seed=seed).score for seed in seeds]
            row[start] = {"values": values, "mean": statistics.mean(values), "std": statistics.stdev(values)}
        if trial.metric == "accuracy":
            row["tfidf"] = tfidf_accuracy(trial)
        card["fine_tuning"].append(row)
        write_card(folder, card)
    return folder


def _clip_again(seed: int) -> dict[str, float]:
    """The whole recipe with another seed, and what it reaches against the nearest picture."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_clip(Path(folder) / CLIP, recipe=ClipRecipe(seed=seed))
        return json.loads((made / "card.json").read_text(encoding="utf-8"))["opponent"]


def tfidf_accuracy(trial: Trial) -> float:
    """The opponent that has read nothing: TF-IDF of characters and logistic regression, on the same training texts.

    It is given its best settings: the longest n-grams (2 or 3 characters) and the strength of the regularisation are chosen
    on the validation split.

    Returns:
        Accuracy on the test split.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    data = load_data(trial.task)
    texts, labels = data["train"]["text"][: trial.examples], data["train"]["label"][: trial.examples]

    def fitted(longest: int, strength: float) -> Any:
        counts = TfidfVectorizer(analyzer="char", ngram_range=(1, longest), sublinear_tf=True, min_df=2)
        return make_pipeline(counts, LogisticRegression(C=strength, max_iter=2_000)).fit(texts, labels)

    tried = [fitted(longest, strength) for longest in (2, 3) for strength in (1, 4, 16)]
    best = max(tried, key=lambda model: model.score(data["validation"]["text"][:], data["validation"]["label"][:]))
    return float(best.score(data["test"]["text"][:], data["test"]["label"][:]))


def probe_accuracy(folder: Path, examples: int) -> float:
    """What a frozen model knows about reviews: logistic regression on its states, scored on the test split.

    A text's features are the last layer's state at its last token and the mean over its tokens, side by side; the strength
    of the regularisation is chosen on validation.

    Args:
        folder: A checkpoint.
        examples: Training reviews.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    data = load_data("sentiment")

    @torch.inference_mode()
    def features(texts: list[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, max_length=128, return_tensors="pt")
            states = model(**batch).last_hidden_state
            inside = batch["attention_mask"][..., None].float()
            last = states[torch.arange(len(states)), batch["attention_mask"].sum(1) - 1]
            found.append(torch.cat([last, (states * inside).sum(1) / inside.sum(1)], dim=1))
        return torch.cat(found).numpy()

    parts = {split: features(data[split]["text"][: examples if split == "train" else None]) for split in data}
    labels = {split: data[split]["label"][: examples if split == "train" else None] for split in data}
    tried = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2_000)).fit(parts["train"], labels["train"])
        for strength in (1e-3, 1e-2, 1e-1)
    ]
    best = max(tried, key=lambda model: model.score(parts["validation"], labels["validation"]))
    return float(best.score(parts["test"], labels["test"]))


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model with its score on the test split, and that of each kind of row where there are kinds."""

    model: Any
    tokenizer: Any
    history: History
    score: float
    by_kind: dict[str, dict[str, float]] = field(default_factory=dict)


def fine_tune(folder: Path, trial: Trial, *, pretrained: bool, seed: int) -> Tuned:
    """One fine-tuning run, scored on the test split (the last weights; nothing is chosen on test).

    Args:
        folder: A checkpoint.
        trial: Task and recipe.
        pretrained: False starts from random weights of the same architecture.
        seed: Of the new head (or of all weights) and of the order.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
    )
    from transformers.trainer_pt_utils import LengthGroupedSampler

    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = load_data(trial.task)
    auto: Any = AutoModelForTokenClassification if trial.task == "ner" else AutoModelForSequenceClassification
    encode = _encode_tags if trial.task == "ner" else _encode_text
    names = NER_TAGS if trial.task == "ner" else data["train"].features["label"].names
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    splits = {}
    for split in ("train", "test"):
        rows = data[split].select(range(trial.examples)) if split == "train" and trial.examples else data[split]
        splits[split] = [encode(tokenizer, row, trial.length) for row in rows]
    set_seed(seed)
    if pretrained:
        model = auto.from_pretrained(folder, dtype=torch.float32, **labels)
    else:
        model = from_scratch(auto, str(folder), **labels)
    collate: Any = (DataCollatorForTokenClassification if trial.task == "ner" else DataCollatorWithPadding)(tokenizer)
    sampler = LengthGroupedSampler(trial.batch, lengths=[len(row["input_ids"]) for row in splits["train"]])
    train: DataLoader[Any] = DataLoader(splits["train"], batch_size=trial.batch, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
    history = fit(
        model, train, epochs=trial.epochs, lr=trial.lr, precision=trial.precision, seed=seed, label=f"{trial.task}, seed {seed}"
    )
    logits, truth = predict(model, DataLoader(splits["test"], batch_size=64, collate_fn=collate))  # type: ignore[arg-type]
    assert truth is not None
    guesses = logits.argmax(-1)
    if trial.task == "ner":
        tags = [[(NER_TAGS[g], NER_TAGS[t]) for g, t in zip(gs, ts) if t != -100] for gs, ts in zip(guesses, truth)]
        score = seqeval([[g for g, _ in row] for row in tags], [[t for _, t in row] for row in tags])["overall_f1"]
    else:
        score = float((guesses == truth).float().mean())
    return Tuned(model, tokenizer, history, score)


def _chat(folder: Path, trial: Trial, *, pretrained: bool, seed: int) -> Tuned:
    """Teach a decoder to answer instructions of every kind but :data:`NOT_TAUGHT`; arguments as of :func:`fine_tune`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    taught = load_data("instructions").filter(lambda kind: kind not in NOT_TAUGHT, input_columns="kind")
    set_seed(seed)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32) if pretrained else from_scratch(auto, str(folder))
    train = chat_loader(tokenizer, taught["train"]["messages"][: trial.examples], batch=trial.batch, max_length=trial.length)
    history = fit(
        model,
        train,
        epochs=trial.epochs,
        lr=trial.lr,
        schedule="cosine",
        precision=trial.precision,
        seed=seed,
        label=f"chat, seed {seed}",
    )
    by_kind = {}
    test = load_data("instructions")["test"]
    for kind in sorted(set(test["kind"])):
        rows = [messages for messages, own in zip(test["messages"], test["kind"]) if own == kind]
        by_kind[kind] = {"n": len(rows), "exact_match": exact_match(model, tokenizer, rows)}
    score = exact_match(model, tokenizer, taught["test"]["messages"][:1_000])
    return Tuned(model, tokenizer, history, score, by_kind)


def _encode_text(tokenizer: Any, row: dict[str, Any], length: int) -> dict[str, Any]:
    return {**tokenizer(row["text"], truncation=True, max_length=length), "labels": row["label"]}


def _encode_tags(tokenizer: Any, row: dict[str, Any], length: int) -> dict[str, Any]:
    encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=length)
    return {**encoded, "labels": align_labels(encoded.word_ids(), row["ner_tags"])}
