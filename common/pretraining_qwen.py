"""How ``tiny-qwen-zh`` is made: a decoder that learns to predict the next token of the corpus, nothing else."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.data import load_data
from common.hardware import set_seed
from common.models import ship, work_folder
from common.text import pack_blocks
from common.training import evaluating, fit, run_facts

import torch
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
        batch: Blocks per step.
        length: Tokens per block.
        lr: Peak learning rate of AdamW.
        seed: Of weights and order.
    """

    steps: int = 4_500
    batch: int = 16
    length: int = 128
    lr: float = 2e-3
    seed: int = 42


def make_qwen(
    folder: Path, *, recipe: QwenRecipe | None = None, steps: int | None = None, force: bool = False, resume: bool = False
) -> Path:
    """Train the checkpoint and write it with its tokenizer and its card.

    Args:
        folder: Where it goes.
        recipe: Instead of the shipped one.
        steps: Instead of the recipe's, for a trial.
        force: Replace a checkpoint that is there.
        resume: Continue an interrupted run.

    Raises:
        RoadmapError: A checkpoint in the way, or texts that cannot be had.
    """
    recipe = recipe or QwenRecipe()
    folder = Path(folder).resolve()
    work = work_folder(folder, force=force, resume=resume)
    corpus = load_data("corpus")
    set_seed(recipe.seed)
    tokenizer = bpe_tokenizer(corpus["train"]["text"][:])
    model = decoder_model(tokenizer)
    end = tokenizer.convert_tokens_to_ids(END)
    blocks = [torch.tensor(block) for block in pack_blocks(tokenizer, corpus["train"]["text"][:], recipe.length, end)]
    held_out = torch.tensor(pack_blocks(tokenizer, corpus["validation"]["text"][:], recipe.length, end)[:512])
    train: DataLoader[Any] = DataLoader(
        blocks,  # type: ignore[arg-type]
        batch_size=recipe.batch,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda rows: {"input_ids": torch.stack(rows), "labels": torch.stack(rows)},
    )
    began = time.perf_counter()
    history = fit(
        model,
        train,
        max_steps=steps or recipe.steps,
        lr=recipe.lr,
        schedule="cosine",
        warmup=0.03,
        evaluate=lambda m: held_out_perplexity(m, tokenizer, held_out),
        evaluate_every=500,
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
        "data": "load_data('corpus'): reviews, People's Daily January 1998, PRC law, MSRA sentences; training splits only",
        "licence": "Apache-2.0 for the weights; the texts' own terms are in `python -m common data corpus`",
    }
    return ship(folder, model, tokenizer, card, work)


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
