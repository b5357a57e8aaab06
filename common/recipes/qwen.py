"""How ``tiny-qwen-zh`` is made: a decoder that learns to predict the next token, and what a large encoder knows of a text.

What is unusual: next tokens alone teach a model this small little about what a review means. So each step also reads some
texts and predicts the states of a real encoder at every token (:mod:`common.recipes.distillation`). And the matrices
of its layers are trained with Muon and a heavy weight decay: the same model, data and steps with AdamW end at a much higher
perplexity, and more passes over so small a corpus only overfit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.data import load_data
from common.recipes.distillation import WIDTH, TeacherStates, mixes, pieces, teacher_facts, teacher_states
from common.recipes.skeleton import Workshop, muon_and_adamw
from common.text import pack_blocks
from common.training import Precision, evaluating

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

NAME = "tiny-qwen-zh"
END = "<|endoftext|>"  # between two texts
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
class QwenRecipe:
    """All that decides the checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch: Blocks per step, for next tokens.
        length: Tokens per block.
        texts: Texts per step, for the teacher's states; at most ``longest`` tokens each.
        longest: Tokens of a text, its end token included.
        others: One of so many pieces that are not reviews is read as well.
        lr: Peak learning rate of Muon, for the matrices of the layers.
        adamw_lr: Peak learning rate of AdamW, for all else.
        weight_decay: Of matrices, for both.
        states, inner, vector: Weights of the distances to the teacher (each begins near 1) beside the loss of next tokens
            (nats): of the last layer's states, of the middle layer's, and of the vector of the whole text.
        mixes: Texts made of clauses of reviews, for each review.
        seed: Of weights, order and mixes.
        precision: As in :func:`common.training.fit`.
        compiled: Whether torch.compile fuses the model (it needs a C++ compiler): 1.5 to 2 times faster on a CPU.
    """

    steps: int = 2_200
    batch: int = 64
    length: int = 128
    texts: int = 32
    longest: int = 96
    others: int = 4
    lr: float = 3e-3
    adamw_lr: float = 2e-3
    weight_decay: float = 0.5
    states: float = 0.7
    inner: float = 0.35
    vector: float = 0.7
    mixes: int = 1
    seed: int = 42
    precision: Precision = "bf16"
    compiled: bool = True


def make_qwen(
    folder: Path, *, recipe: QwenRecipe | None = None, steps: int | None = None, force: bool = False, resume: bool = False
) -> Path:
    """Train the checkpoint and write it with its tokenizer and its card; arguments as of :class:`Workshop`.

    Raises:
        RoadmapError: A checkpoint in the way, or texts or the teacher that cannot be had.
    """
    recipe = recipe or QwenRecipe()
    run = Workshop(NAME, folder, recipe, steps=steps, force=force, resume=resume)
    corpus = load_data("corpus")
    tokenizer = bpe_tokenizer(corpus["train"]["text"][:])
    taught, unseen = texts_to_read(tokenizer, recipe)
    states, exam = teacher_states(tokenizer, taught, unseen, run.work / "states", precision=recipe.precision, place="last")
    end = tokenizer.convert_tokens_to_ids(END)
    blocks = torch.tensor(pack_blocks(tokenizer, corpus["train"]["text"][:], recipe.length, end))
    held_out = torch.tensor(pack_blocks(tokenizer, corpus["validation"]["text"][:], recipe.length, end)[:512])
    model = decoder_model(tokenizer)
    student = Student(model, states, recipe)
    train: DataLoader[Any] = DataLoader(
        blocks,  # type: ignore[arg-type]
        batch_size=recipe.batch,
        shuffle=True,
        drop_last=True,
        collate_fn=with_texts(states, end, recipe),
    )
    history = run.fit(
        student,
        train,
        optimizer=optimizers(student, recipe),
        warmup=0.03,
        precision=recipe.precision,
        evaluate=lambda _: held_out_perplexity(model, tokenizer, held_out) | student.examine(exam, end),
        evaluate_every=200,
        save_every=100,
    )
    return run.ship(model, tokenizer, history, **teacher_facts(states))


# ------------------------------------------------------------------------------------------------ what is read


def texts_to_read(tokenizer: Any, recipe: QwenRecipe) -> tuple[list[str], list[str]]:
    """Texts for the teacher, and 512 that are never trained on: pieces of reviews, mixes, and some of everything else."""
    reviews, corpus = load_data("sentiment"), load_data("corpus")
    own = pieces(reviews["train"]["text"][:])
    known = set(own)
    others = [piece for piece in pieces(corpus["train"]["text"][:]) if piece not in known][:: recipe.others]
    taught = own + mixes(reviews["train"]["text"][:], recipe.mixes, recipe.seed) + others
    unseen = pieces(corpus["validation"]["text"][:])
    return _short(tokenizer, taught, recipe.longest - 1), _short(tokenizer, unseen, recipe.longest - 1)[:512]


def _short(tokenizer: Any, texts: list[str], longest: int) -> list[str]:
    """The texts of at most ``longest`` tokens."""
    return [text for text, ids in zip(texts, tokenizer(texts, verbose=False)["input_ids"]) if len(ids) <= longest]


def with_texts(states: TeacherStates, end: int, recipe: QwenRecipe) -> Callable[[list[torch.Tensor]], dict[str, torch.Tensor]]:
    """Collate function: blocks, and beside them texts of similar lengths, drawn at random, with the teacher's states."""
    order = np.argsort(states.lengths, kind="stable")

    def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        start = int(torch.randint(0, max(1, len(order) - recipe.texts), ()))
        texts = text_batch([states[int(i)] for i in order[start : start + recipe.texts]], end, recipe.longest)
        return {"input_ids": torch.stack(rows), **texts}

    return collate


def text_batch(rows: list[dict[str, Any]], end: int, longest: int) -> dict[str, torch.Tensor]:
    """Texts of one shape, closed and filled up with the end token.

    Returns:
        ``texts`` ``(batch, longest)``; ``sizes`` ``(batch,)``, their tokens without the end token; ``states``
        ``(batch, longest, WIDTH)``, zero where there is no token; ``vector`` ``(batch, WIDTH)``.
    """
    texts = torch.full((len(rows), longest), end)
    states = torch.zeros(len(rows), longest, WIDTH)
    sizes = torch.tensor([len(row["input_ids"]) for row in rows])
    for i, row in enumerate(rows):
        texts[i, : sizes[i]] = torch.tensor(row["input_ids"])
        states[i, : sizes[i]] = row["states"]
    return {"texts": texts, "sizes": sizes, "states": states, "vector": torch.stack([row["vector"] for row in rows])}


# ------------------------------------------------------------------------------------------------ learning


class Student(torch.nn.Module):
    """The decoder, and linear maps from its states to the teacher's, which are thrown away in the end.

    The loss is a sum of four. In the blocks: next tokens (nats). In the texts: the squared distance of the last layer's
    states to the teacher's (1 for the mean state), and the same for the middle layer. And 1 minus the cosine to the vector
    of the text, at its last token and at its end token. At both, a causal model has read the whole text.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, model: Any, states: TeacherStates, recipe: QwenRecipe):
        super().__init__()
        width = model.config.hidden_size
        self.model, self.recipe, self.variance = model, recipe, states.variance
        self.last, self.middle, self.whole = (torch.nn.Linear(width, WIDTH) for _ in range(3))
        self.register_buffer("mean", states.mean)
        self.register_buffer("deviation", states.deviation)
        compiled = torch.compile if recipe.compiled else lambda function, **_: function
        self._next_token = compiled(self.next_token, dynamic=False)
        self._distances = compiled(self.distances, dynamic=False)

    def next_token(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Mean loss of the next token in nats, of blocks ``(batch, length)``."""
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), input_ids[:, 1:].flatten())

    def distances(
        self, texts: torch.Tensor, sizes: torch.Tensor, states: torch.Tensor, vector: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Distances to what the teacher makes of texts; arguments as :func:`text_batch` returns them.

        No attention mask is needed: what fills up a text stands after it, where a causal model does not look.
        """
        out = self.model.model(input_ids=texts, use_cache=False, output_hidden_states=True)
        last = out.last_hidden_state
        middle = self.model.model.norm(out.hidden_states[self.model.config.num_hidden_layers // 2])
        places = torch.arange(texts.shape[1], device=texts.device)[None]
        inside = (places < sizes[:, None]).float()[..., None]

        def distance(own: torch.Tensor) -> torch.Tensor:
            return ((own.float() - states).square() * inside).sum() / (inside.sum() * WIDTH * self.variance)

        rows = torch.arange(len(texts), device=texts.device)
        target = ((vector - self.mean) / self.deviation).repeat(2, 1)
        ends = torch.cat([last[rows, sizes - 1], last[rows, sizes]])
        cosine = F.cosine_similarity(self.whole(ends).float(), target, dim=1).mean()
        return {"states": distance(self.last(last)), "inner": distance(self.middle(middle)), "vector": 1 - cosine}

    def forward(self, input_ids: torch.Tensor, **texts: torch.Tensor) -> Any:
        distance = self._distances(**texts)
        weighted = [getattr(self.recipe, name) * value for name, value in distance.items()]
        return SimpleNamespace(loss=self._next_token(input_ids) + sum(weighted))

    def examine(self, exam: TeacherStates, end: int) -> dict[str, float]:
        """Part of the teacher's states that is explained on texts never seen, and the cosine to its vectors."""
        home, sums = self.mean.device, {"states": 0.0, "vector": 0.0}
        with evaluating(self):
            for start in range(0, len(exam), 64):
                rows = [exam[i] for i in range(start, min(start + 64, len(exam)))]
                batch = {key: value.to(home) for key, value in text_batch(rows, end, self.recipe.longest).items()}
                distance = self.distances(**batch)
                sums = {key: sums[key] + float(distance[key]) * len(rows) for key in sums}
        return {"states_explained": 1 - sums["states"] / len(exam), "teacher_cosine": 1 - sums["vector"] / len(exam)}


def optimizers(student: Student, recipe: QwenRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms, biases and the maps to the teacher."""
    matrices = [p for p in student.model.model.layers.parameters() if p.ndim == 2]
    return muon_and_adamw(student, matrices, lr=recipe.lr, adamw_lr=recipe.adamw_lr, weight_decay=recipe.weight_decay)


# ------------------------------------------------------------------------------------------------ the parts


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


def held_out_perplexity(model: torch.nn.Module, tokenizer: Any, ids: torch.Tensor) -> dict[str, float]:
    """Perplexity per token of blocks ``(blocks, length)``, and bits per character, which does not depend on the tokenizer."""
    nats, home = 0.0, next(model.parameters()).device
    with evaluating(model):
        for x in ids.split(32):
            logits = model(input_ids=x.to(home)).logits[:, :-1].float().cpu()
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum"))
    tokens = ids[:, 1:].numel()
    characters = sum(len(text) for text in tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True))
    return {"loss": nats / tokens, "perplexity": math.exp(nats / tokens), "bits_per_character": nats / math.log(2) / characters}
