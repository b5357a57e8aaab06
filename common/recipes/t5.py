"""How ``tiny-t5-zh`` is made: an encoder-decoder that learns from raw text to fill gaps, to repair, and to say what matters.

What is unusual: T5's span corruption alone teaches a model this small little that a summary could stand on, because its
targets are never copied from the source. So it is mixed with two objectives of the same kind: to write the clause that
shares most with the rest of its text, which is taken out (the gap sentences of PEGASUS; above a newspaper paragraph that is
mostly the headline), and to repair a stretch that has lost characters (BART's denoising, of one stretch). And its attention
begins as that of a model that can copy: see :func:`ready_to_copy`.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.data import load_data
from common.hardware import set_seed
from common.recipes.skeleton import Workshop, muon_and_adamw
from common.training import Precision, evaluating

import torch
from torch.utils.data import DataLoader

NAME = "tiny-t5-zh"
PREFIX = "摘要："  # "summary:", the task prefix: text in, text out, and the text says which task
SENTINELS = 32
SHORTEST, LONGEST = 40, 96  # characters of a piece of text
GAP = (5, 45)  # characters of a clause that is taken out
_CLAUSE = re.compile(r"[^。！？；，：\n]+[。！？；，：\n]?")
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class T5Recipe:
    """All that decides the checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch: Pieces of text per step.
        lr: Peak learning rate of Muon, for the matrices of the layers.
        adamw_lr: Peak learning rate of AdamW, for all else.
        weight_decay: Of matrices, for both.
        spans: Part of the pieces that get span corruption.
        gaps: Part of the pieces whose principal clause is the target; the rest is repaired.
        headed: How often a piece that begins with a headline counts.
        seed: Of weights, order and noise.
        precision: As in :func:`common.training.fit`.
        compiled: Whether torch.compile fuses the model (it needs a C++ compiler): 1.5 times faster on a CPU.
    """

    steps: int = 5_000
    batch: int = 32
    lr: float = 3e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.1
    spans: float = 0.2
    gaps: float = 0.5
    headed: int = 8
    seed: int = 42
    precision: Precision = "bf16"
    compiled: bool = True


def make_t5(
    folder: Path, *, recipe: T5Recipe | None = None, steps: int | None = None, force: bool = False, resume: bool = False
) -> Path:
    """Train the checkpoint and write it with its tokenizer and its card; arguments as of :class:`Workshop`.

    Raises:
        RoadmapError: A checkpoint in the way, or texts that cannot be had.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler

    recipe = recipe or T5Recipe()
    run = Workshop(NAME, folder, recipe, steps=steps, force=force, resume=resume)
    corpus = load_data("corpus")
    tokenizer = t5_tokenizer(corpus["train"]["text"][:])
    rows = pieces(corpus["train"]["text"][:])
    rows += [row for row in rows if "\n" in row] * (recipe.headed - 1)
    held_out = held_out_pairs(tokenizer, pieces(corpus["validation"]["text"][:]), recipe)
    set_seed(recipe.seed)
    model = t5_model(tokenizer)
    train: DataLoader[Any] = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=recipe.batch,
        sampler=LengthGroupedSampler(recipe.batch, lengths=[len(row) for row in rows]),
        drop_last=True,
        collate_fn=noising(tokenizer, recipe),
    )
    learner: Any = torch.compile(model, dynamic=True) if recipe.compiled else model
    history = run.fit(
        learner,
        train,
        optimizer=optimizers(model, recipe),
        warmup=0.05,
        precision=recipe.precision,
        evaluate=lambda _: held_out_losses(model, tokenizer, held_out),
        evaluate_every=300,
        save_every=100,
    )
    unigram = unigram_losses(tokenizer, rows, held_out, recipe)
    return run.ship(
        model,
        tokenizer,
        history,
        held_out_kind="held-out text, nats per target token",
        unigram=unigram,
        data="load_data('corpus'), training split: reviews, People's Daily January 1998, PRC law, MSRA sentences",
        licence="Apache-2.0 for the weights; the texts' own terms are in `python -m common data corpus`",
        note=(
            "Loss by objective: span corruption (T5), the principal clause from the rest of its text (PEGASUS; in a piece that "
            "begins with a headline it is mostly the headline), and repair of a stretch that lost characters (BART). Always "
            "answering with the frequencies of the training targets costs "
            + ", ".join(f"{key} {value:.4g}" for key, value in unigram.items())
            + "."
        ),
    )


# ------------------------------------------------------------------------------------------------ the parts


def t5_tokenizer(texts: list[str], *, at_least: int = 5) -> Any:
    """Characters as tokens, case kept, with T5's special tokens: ``</s>`` after every text, sentinels ``<extra_id_0>`` ...

    Counted rather than trained, so that it is the same on every machine.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    counts = Counter(character for text in texts for character in text)
    kept = sorted({c for c, n in counts.items() if n >= at_least} | set(PREFIX), key=lambda c: (-counts[c], c))
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *sentinels, *kept])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    ending = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", vocab["</s>"])])
    tokenizer.post_processor = ending  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def t5_model(tokenizer: Any) -> Any:
    """T5 1.1 (gated GELU), 3 + 3 layers of width 128, one matrix for both embeddings and the output layer."""
    from transformers import T5Config, T5ForConditionalGeneration

    inherited: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True}
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=384,
        num_layers=3,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **inherited,
    )
    return ready_to_copy(T5ForConditionalGeneration(config))


@torch.no_grad()
def ready_to_copy(model: Any) -> Any:
    """Weights that look like those of trained models: from random ones, copying takes this size hours to find.

    Cross-attention begins as a search for the token that was written last: keys and queries are the same projection. It
    brings what it finds unchanged: values and outputs are each other's inverse. In the encoder, heads look at the next token
    and at the one before. So a decoder that finds the last token sees what followed it. Training may undo all of it.

    Source:
        Trockman, Kolter, "Mimetic Initialization of Self-Attention Layers" (2023).
    """
    width = model.config.d_model

    def turn() -> torch.Tensor:
        return torch.nn.init.orthogonal_(torch.empty(width, width))

    for block in model.decoder.block:
        cross, alike, moved = block.layer[1].EncDecAttention, turn() / 2, turn()
        for layer, weight in ((cross.q, alike), (cross.k, alike), (cross.v, moved), (cross.o, moved.T)):
            layer.weight.copy_(weight)
    for block in model.encoder.block:
        own, moved = block.layer[0].SelfAttention, turn()
        own.v.weight.copy_(moved)
        own.o.weight.copy_(moved.T)
    reads = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    after, before = model.config.relative_attention_num_buckets // 2 + 1, 1  # the buckets of the two neighbours
    reads[after, :2] += 6
    reads[before, 2] += 6
    model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[before, 0] += 6
    return model


def optimizers(model: Any, recipe: T5Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and the biases of relative positions."""
    matrices = [p for name, p in model.named_parameters() if ".block." in name and p.ndim == 2 and "bias" not in name]
    return muon_and_adamw(model, matrices, lr=recipe.lr, adamw_lr=recipe.adamw_lr, weight_decay=recipe.weight_decay)


def pieces(texts: list[str]) -> list[str]:
    """The texts, cut every ``LONGEST`` characters; what is shorter than ``SHORTEST`` is left out."""
    cut = [text[i : i + LONGEST] for text in texts for i in range(0, len(text), LONGEST)]
    return [piece for piece in cut if len(piece) >= SHORTEST]


# ------------------------------------------------------------------------------------------------ the objectives


def corrupt_spans(ids: list[int], first: int, end: int, rng: random.Random, part: float = 0.15, mean: float = 3.0) -> Pair:
    """T5's span corruption: each hidden span becomes one sentinel; the target names the sentinels and what they hide.

    Args:
        ids: Token ids without end-of-sequence.
        first: Id of ``<extra_id_0>``; the further ones follow it.
        end: Id of end-of-sequence, which ends source and target.
        rng: Where the randomness comes from.
        part: Share of the tokens that are hidden.
        mean: Mean length of a span.

    Returns:
        Source and target. The target ends with the sentinel after the last one used, then end-of-sequence.

    Source:
        Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020), 3.1.4.
    """
    hidden = min(max(1, round(len(ids) * part)), len(ids) - 1)
    spans = min(max(1, round(hidden / mean)), hidden, len(ids) - hidden, SENTINELS - 1)
    source: list[int] = []
    target: list[int] = []
    place = 0
    for i, (kept, gone) in enumerate(zip(_composition(len(ids) - hidden, spans, rng), _composition(hidden, spans, rng))):
        source += [*ids[place : place + kept], first + i]
        target += [first + i, *ids[place + kept : place + kept + gone]]
        place += kept + gone
    return [*source, end], [*target, first + spans, end]


def _composition(total: int, parts: int, rng: random.Random) -> list[int]:
    """Random whole numbers, each at least 1, that add up to ``total``."""
    cuts = [0, *sorted(rng.sample(range(1, total), parts - 1)), total]
    return [b - a for a, b in pairwise(cuts)]


def principal_clause(text: str) -> tuple[str, str] | None:
    """The text without the clause that shares most with the rest, and that clause; None if there is no choice.

    A line of its own is not cut into clauses. What is shared are pairs of characters, as in ROUGE-2.

    Source:
        Zhang et al., "PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization" (2020), 3.1.
    """
    *lines, rest = text.split("\n")
    clauses = [f"{line}\n" for line in lines] + _CLAUSE.findall(rest)
    best: tuple[float, int] | None = None
    for i, clause in enumerate(clauses):
        core = clause.rstrip("。！？；，：\n")
        if not GAP[0] <= len(core) <= GAP[1]:
            continue
        others = "".join(clauses[:i] + clauses[i + 1 :])
        known = {others[j : j + 2] for j in range(len(others) - 1)}
        shared = sum(core[j : j + 2] in known for j in range(len(core) - 1)) / (len(core) - 1)
        if best is None or shared > best[0]:
            best = (shared, i)
    if best is None or len(clauses) < 2:
        return None
    rest = "".join(clauses[: best[1]] + clauses[best[1] + 1 :])
    return rest.replace("\n", ""), clauses[best[1]].rstrip("。！？；，：\n")


def damage(ids: list[int], first: int, end: int, rng: random.Random, lost: float = 0.35) -> Pair:
    """A stretch of 8 to 24 tokens between two sentinels loses a part of its tokens; the target is the whole stretch."""
    size = min(rng.randint(8, 24), len(ids))
    start = rng.randint(0, len(ids) - size)
    stretch = ids[start : start + size]
    left = [token for token in stretch if rng.random() >= lost]
    return [*ids[:start], first, *left, first + 1, *ids[start + size :], end], [first, *stretch, first + 1, end]


def objective(tokenizer: Any, text: str, kind: str, rng: random.Random) -> Pair:
    """Source and target of one piece of text under ``"spans"``, ``"gap"`` or ``"repair"``; without a gap, spans."""
    first, end = tokenizer.convert_tokens_to_ids("<extra_id_0>"), tokenizer.eos_token_id
    if kind == "gap" and (found := principal_clause(text)):
        source, target = found
        return tokenizer(PREFIX + source)["input_ids"], tokenizer(target)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return damage(ids, first, end, rng) if kind == "repair" else corrupt_spans(ids, first, end, rng)


def as_batch(tokenizer: Any, pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """Padded sources with their mask, and labels that are -100 where a target has ended."""
    inputs = tokenizer.pad([{"input_ids": source} for source, _ in pairs], return_tensors="pt")
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(target) for _, target in pairs], True, -100)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}


def noising(tokenizer: Any, recipe: T5Recipe) -> Callable[[list[str]], dict[str, torch.Tensor]]:
    """Collate function: every piece gets one objective by chance, and new noise every time."""
    chances = [recipe.spans, recipe.gaps, 1 - recipe.spans - recipe.gaps]

    def collate(texts: list[str]) -> dict[str, torch.Tensor]:
        rng = random.Random(int(torch.randint(2**31, ())))
        kinds = rng.choices(["spans", "gap", "repair"], chances, k=len(texts))
        return as_batch(tokenizer, [objective(tokenizer, text, kind, rng) for text, kind in zip(texts, kinds)])

    return collate


# ------------------------------------------------------------------------------------------------ what it has learned


def held_out_pairs(tokenizer: Any, texts: list[str], recipe: T5Recipe, count: int = 192) -> dict[str, list[Pair]]:
    """The same held-out pieces under each objective, with fixed noise; half of them begin with a headline, if there are such."""
    headed = [text for text in texts if "\n" in text][: count // 2]
    chosen = headed + [text for text in texts if "\n" not in text][: count - len(headed)]
    chosen = [text for text in chosen if principal_clause(text)]
    rng = random.Random(recipe.seed)
    return {kind: [objective(tokenizer, text, kind, rng) for text in chosen] for kind in ("spans", "gap", "repair")}


def held_out_losses(model: Any, tokenizer: Any, pairs: dict[str, list[Pair]]) -> dict[str, float]:
    """Nats per target token, by objective."""
    found, home = {}, next(model.parameters()).device
    with evaluating(model):
        for kind, rows in pairs.items():
            nats = tokens = 0.0
            for start in range(0, len(rows), 32):
                batch = {k: v.to(home) for k, v in as_batch(tokenizer, rows[start : start + 32]).items()}
                count = float((batch["labels"] != -100).sum())
                nats, tokens = nats + float(model(**batch).loss) * count, tokens + count
            found[kind] = nats / tokens
    return found


def unigram_losses(
    tokenizer: Any, texts: list[str], pairs: dict[str, list[Pair]], recipe: T5Recipe, count: int = 2_000
) -> dict[str, float]:
    """What it costs to answer every token with its frequency among training targets of the same objective (plus one)."""
    rng, found = random.Random(recipe.seed), {}
    some = rng.sample(texts, min(count, len(texts)))
    for kind, rows in pairs.items():
        seen = Counter(token for text in some for token in objective(tokenizer, text, kind, rng)[1])
        total = seen.total() + len(tokenizer)
        targets = [token for _, target in rows for token in target]
        found[kind] = -sum(math.log((seen[token] + 1) / total) for token in targets) / len(targets)
    return found
