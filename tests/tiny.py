"""A model and a loader so small that a training test takes a second; both draw random numbers on purpose."""

import random
import zlib
from types import SimpleNamespace

from common.recipes import skeleton
from common.recipes.distillation import WIDTH

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import ModernBertConfig, ModernBertModel
from transformers.modeling_outputs import SequenceClassifierOutput


def small_encoder(layers: int, **options: float) -> ModernBertModel:
    """A random encoder of the architecture and vocabulary of tiny-bert-zh, 32 wide."""
    return ModernBertModel(
        ModernBertConfig(
            vocab_size=4312,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            layer_types=["full_attention"] * layers,
            max_position_embeddings=128,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
            **options,
        )
    )


class Net(torch.nn.Module):
    """Mean of embeddings, dropout, linear: enough to be trained and to be random."""

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.drop = torch.nn.Dropout(dropout)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.norm(self.drop(self.embed(input_ids)).mean(1)))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def examples(n: int = 64, seed: int = 0) -> list[dict]:
    """Rows whose label is whether token 7 occurs."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        ids = [rng.randrange(10, 50) for _ in range(6)]
        if i % 2:
            ids[rng.randrange(6)] = 7
        rows.append({"input_ids": ids, "labels": i % 2})
    return rows


def noisy(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A collate function that replaces random tokens, with all three generators."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    ids[torch.rand(ids.shape) < 0.1] = random.randrange(10, 50)
    return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in rows])}


def loader(n: int = 64, batch: int = 8, *, shuffle: bool = True, collate=noisy) -> DataLoader:
    return DataLoader(examples(n), batch_size=batch, shuffle=shuffle, collate_fn=collate)


def plain(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A collate function without randomness."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def check_resume(monkeypatch, name, make, tmp_path, recipe, *, save_every: int, evaluate_every: int) -> None:
    """A recipe stopped at its second evaluation and continued must end with the bytes of one that was not stopped.

    Args:
        name: Of the checkpoint.
        make: What makes it; saves come at other steps than in the recipe.
    """
    real = skeleton.fit

    def saving(*args, **kwargs):
        return real(*args, **kwargs | {"save_every": save_every, "evaluate_every": evaluate_every})

    def interrupted(*args, **kwargs):
        calls, measure = [], kwargs["evaluate"]

        def evaluate(model):
            calls.append(model)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return measure(model)

        return saving(*args, **kwargs | {"evaluate": evaluate})

    monkeypatch.setattr(skeleton, "fit", saving)
    whole = make(tmp_path / "whole" / name, recipe=recipe)
    monkeypatch.setattr(skeleton, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / name, recipe=recipe)
    assert list((tmp_path / f".{name}-run").glob("step-*"))  # there is something to continue from
    monkeypatch.setattr(skeleton, "fit", saving)
    folder = make(tmp_path / name, recipe=recipe, resume=True)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


class FakeTeacher:
    """A teacher whose pieces are pairs of characters after one marker, and whose states add up a fixed noise for each."""

    model = SimpleNamespace(to=lambda home: None)

    def pieces(self, text):
        return [(0, 0), *((i, min(i + 2, len(text))) for i in range(0, len(text), 2))]

    def states(self, texts, layers):
        def noise(character):
            return torch.randn(len(layers) * WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(character.encode())))

        def state(pair):
            return torch.stack([noise(character) for character in pair or "^"]).sum(0)

        return [torch.stack([state(text[start:end]) for start, end in self.pieces(text)]) for text in texts]
