"""The picture model: made by a recipe that runs, from pictures that vary, and shipped with something learned."""

import json

from common import models
from common.data import load_data
from common.data.images import ICONS
from common.errors import RoadmapError
from common.models import checkpoint, verify
from common.recipes import clip, trials
from common.recipes.clip import (
    HOTTEST,
    THINGS,
    ClipRecipe,
    as_tensor,
    clip_model,
    clip_processor,
    embed,
    emoji_tokenizer,
    make_clip,
    outlines,
    pairs_loader,
    things,
    transfer_recall,
    vary,
)

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from tests.tiny import check_resume

NAMES = ["红苹果", "red apple", "绿苹果", "green apple", "狗脸", "dog face"]


@pytest.fixture(scope="module")
def pictures():
    return load_data("image_text")


@pytest.fixture
def few(pictures, monkeypatch, tmp_path):
    """Twelve concepts, with their pictures in the other style in validation and in test; an empty folder of models."""
    from datasets import DatasetDict

    drawn = set(pictures["test"]["emoji"])
    train = pictures["train"].filter(lambda e, g: e in drawn and g in THINGS, input_columns=["emoji", "group"]).select(range(12))
    wanted = set(train["emoji"])
    other = pictures["test"].filter(lambda emoji: emoji in wanted, input_columns="emoji")
    data = DatasetDict({"train": train, "validation": other, "test": other})
    monkeypatch.setattr(clip, "load_data", lambda name: data)
    monkeypatch.setattr(models, "MODELS_DIR", tmp_path)
    monkeypatch.setattr(trials, "MODELS_DIR", tmp_path)
    return data


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    processor = clip_processor(emoji_tokenizer(NAMES))
    return clip_model(processor.tokenizer).eval(), processor


# ------------------------------------------------------------------------------------------------ making it


def test_a_run_writes_a_checkpoint_that_loads(few, tmp_path):
    folder = make_clip(tmp_path / "tiny-clip-emoji", recipe=ClipRecipe(steps=3, batch=4))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert verify("clip") == [] and card["recipe"]["steps"] == 3 and len(card["curve"]) == 3
    assert set(card["held_out"]) == {f"recall_at_{k}_{language}" for k in (1, 5) for language in ("zh", "en")}
    assert "| held-out pictures |" in (folder / "README.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".*-run"))
    model, processor = CLIPModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert embed(model.float(), processor, images=few["train"]["image"][:2]).shape == (2, 128)


def test_it_is_made_by_the_command_and_nothing_is_overwritten(few, tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "ClipRecipe", lambda: ClipRecipe(steps=50, batch=4))
    folder = trials.make("tiny-clip-emoji", steps=2)
    assert folder == tmp_path / "tiny-clip-emoji"
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(RoadmapError, match="--force to replace"):
        trials.make("tiny-clip-emoji", steps=2)
    assert (folder / "model.safetensors").read_bytes() == before
    trials.make("tiny-clip-emoji", steps=3, force=True)
    assert (folder / "model.safetensors").read_bytes() != before
    with pytest.raises(RoadmapError, match="tiny-clip-emoji"):
        trials.make("tiny-clip-emojis")


def test_an_interrupted_run_is_continued_with_the_same_numbers(few, tmp_path, monkeypatch):
    """Stopped after two of four steps: the weights are those of a run that was not stopped."""
    recipe = ClipRecipe(steps=4, batch=4)
    check_resume(monkeypatch, clip.NAME, make_clip, tmp_path, recipe, save_every=2, evaluate_every=2)


def test_the_temperature_does_not_freeze(parts):
    model, processor = parts
    clamped = clip._Clamped(model)
    batch = processor(text=NAMES[:2], images=[_square(), _square()], return_tensors="pt", padding=True)
    with torch.no_grad():
        kept = model.logit_scale.clone()
        model.logit_scale.fill_(10)
        loss = clamped(**batch).loss
        assert model.logit_scale <= HOTTEST and loss.isfinite()
        model.logit_scale.copy_(kept)


# ------------------------------------------------------------------------------------------------ its parts


def test_names_are_read_in_characters_and_whole_words(parts):
    tokenizer = parts[1].tokenizer
    assert tokenizer.tokenize("红苹果") == ["红", "苹", "果"]
    assert tokenizer.tokenize("Red apple") == ["red", "apple"]
    assert tokenizer.tokenize("ape") == ["a", "##p", "##e"]  # a word that is in no name
    assert tokenizer.eos_token_id == tokenizer.sep_token_id == tokenizer("狗")["input_ids"][-1]
    assert list(tokenizer("狗")) == ["input_ids", "attention_mask"]


def test_padding_and_batches_change_nothing(parts):
    model, processor = parts
    together = embed(model, processor, text=NAMES)
    assert torch.allclose(together, embed(model, processor, text=NAMES, batch=1), atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(NAMES)), atol=1e-5)
    assert (together @ together.T - torch.eye(len(NAMES))).abs().max() > 0.01


def test_outlines_are_where_colours_change():
    page = torch.ones(1, 3, 64, 64)
    assert outlines(page).max() == 0
    page[..., 32:] = 0
    edges = outlines(page)
    assert edges.shape == (1, 1, 64, 64) and edges[..., 31:33].min() == 1 and edges[..., :31].max() == edges[..., 33:].max() == 0


def test_varied_pictures_are_pictures_on_white():
    page = torch.ones(16, 3, 64, 64)
    page[:, 0, 16:48, 16:48] = 0  # a cyan square
    torch.manual_seed(0)
    varied = vary(page, outlines(page))
    again = vary(page, outlines(page))
    assert varied.shape == page.shape and varied.min() >= 0 and varied.max() <= 1
    assert not torch.equal(varied, again) and (varied[0] - varied[1]).abs().max() > 0.1
    assert torch.allclose(vary(torch.ones(4, 3, 64, 64), torch.zeros(4, 1, 64, 64)), torch.ones(4, 3, 64, 64))
    assert vary(page, outlines(page), blur=4).shape == page.shape
    ink = [(1 - vary(page, outlines(page), small=part)).gt(0.1).any(1).float().mean() for part in (0.0, 1.0)]
    assert ink[1] < 0.6 * ink[0]


def test_a_batch_holds_pictures_with_one_of_their_names(few, parts):
    tokenizer = emoji_tokenizer([*few["train"]["caption_zh"], *few["train"]["caption_en"]])
    torch.manual_seed(0)
    batch = next(iter(pairs_loader(few["train"], tokenizer, ClipRecipe(batch=8))))
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    read = {tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in batch["input_ids"]}
    both = {
        tokenizer.decode(tokenizer(n)["input_ids"], skip_special_tokens=True).replace(" ", "")
        for c in ("caption_zh", "caption_en")
        for n in few["train"][c]
    }
    assert len(read) == 8 and read <= both


def test_recall_counts_the_pictures_whose_name_comes_first(few, monkeypatch):
    place = {emoji: i for i, emoji in enumerate(few["train"]["emoji"])}
    right = torch.eye(12)[[place[emoji] for emoji in few["test"]["emoji"]]]

    def found(pictures):
        monkeypatch.setattr(clip, "embed", lambda *_, images=None, text=None: pictures if images else torch.eye(12))
        return transfer_recall(None, None, few["train"], few["test"])

    assert set(found(right).values()) == {1.0}
    third = torch.stack([torch.roll(row, 1) + torch.roll(row, 2) for row in right]) + 0.5 * right
    assert found(third) == {f"recall_at_{k}_{language}": float(k == 5) for k in (1, 5) for language in ("zh", "en")}


def test_only_things_are_learned_and_every_icon_of_the_scenes_is_among_them(pictures):
    rows = things(pictures["train"])
    assert set(rows["group"]) == set(THINGS) and 600 < len(rows) < len(pictures["train"])
    assert set(ICONS) <= set(rows["emoji"])


# ------------------------------------------------------------------------------------------------ what is shipped


def test_what_was_learned_carries_over_to_the_other_style(pictures):
    """Of 695 names the right one is among the first five for every fourth picture in a style that was never seen."""
    folder = checkpoint("clip")
    model, processor = CLIPModel.from_pretrained(folder, dtype=torch.float32), AutoProcessor.from_pretrained(folder)
    train, rows = (things(pictures[split]) for split in ("train", "validation"))
    good = transfer_recall(model, processor, train, rows)
    torch.manual_seed(0)
    bad = transfer_recall(clip_model(processor.tokenizer), processor, train, rows)
    assert min(good["recall_at_5_zh"], good["recall_at_5_en"]) > 0.17
    assert max(bad.values()) < 0.03


def test_as_tensor_is_between_black_and_white():
    assert as_tensor([_square()]).unique().tolist() == [0, 1]


def _square():
    from PIL import Image

    page = Image.new("RGB", (64, 64), "white")
    page.paste("black", (16, 16, 48, 48))
    return page
