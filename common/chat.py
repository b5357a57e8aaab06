"""Conversations in, answers out: batches to train on and batched generation, for every lesson that is about neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.text import IGNORE, chat_features, chat_prompt

import torch
from torch.utils.data import DataLoader

Messages = Sequence[Mapping[str, Any]]


def chat_loader(
    tokenizer: Any, conversations: Sequence[Messages], *, batch: int = 16, max_length: int = 256, shuffle: bool = True
) -> DataLoader[Any]:
    """Batches of conversations, padded on the right, with labels on the answers only.

    Args:
        tokenizer: With a chat template; see :func:`common.text.chat_features`.
        conversations: Each a list of messages with ``role`` and ``content``.
        batch: Conversations per batch.
        max_length: The most tokens of one conversation.
        shuffle: In random order, conversations of similar length together (half the padding); off for evaluation.

    Returns:
        Yields ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, longest)``.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler

    rows = [chat_features(tokenizer, messages, max_length) for messages in conversations]
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORE}

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["labels"]) for row in rows)
        return {
            key: torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows]) for key, fill in padding.items()
        }

    sampler = LengthGroupedSampler(batch, lengths=[len(row["labels"]) for row in rows]) if shuffle else None
    return DataLoader(rows, batch_size=batch, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


@torch.no_grad()
def answer(
    model: Any, tokenizer: Any, conversations: Sequence[Messages], *, max_new_tokens: int = 24, batch: int = 64
) -> list[str]:
    """What the model says to the last question of each conversation, without sampling.

    Whatever stands after the last question is not shown to the model. Prompts are padded on the left, as generation needs.

    Args:
        model: A causal language model (with adapters or without); set to evaluation mode while it answers.
        tokenizer: Its tokenizer, with a chat template.
        conversations: Each a list of messages; a final assistant's message is taken off.
        max_new_tokens: The most tokens of an answer.
        batch: Conversations at a time.

    Raises:
        RoadmapError: As :func:`common.text.check_conversation`.
    """
    prompts = []
    for messages in conversations:
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        prompts.append(chat_prompt(tokenizer, asked))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]))  # little padding
    answers = [""] * len(prompts)
    was_training, fill = model.training, tokenizer.pad_token_id or 0
    model.eval()
    try:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = _padded([prompts[i][1] for i in rows], fill, model.device)
            made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(rows, texts):
                answers[i] = text.strip()
    finally:
        model.train(was_training)
    return answers


def _padded(rows: list[list[int]], fill: int, device: Any) -> dict[str, torch.Tensor]:
    """Rows of token ids as tensors, padded on the left."""
    gaps = [max(map(len, rows)) - len(row) for row in rows]
    ids = torch.tensor([[fill] * gap + row for gap, row in zip(gaps, rows)], device=device)
    mask = torch.tensor([[0] * gap + [1] * len(row) for gap, row in zip(gaps, rows)], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def exact_match(model: Any, tokenizer: Any, conversations: Sequence[Messages], **options: Any) -> float:
    """Part of the conversations whose last answer the model gives word for word; options as of :func:`answer`."""
    given = answer(model, tokenizer, conversations, **options)
    return sum(text == messages[-1]["content"].strip() for text, messages in zip(given, conversations)) / len(given)
