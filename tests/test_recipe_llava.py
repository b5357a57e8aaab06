"""The tiny LLaVA: labels on answers only, a picture's worth of tokens, scenes of the training split, a recipe that runs."""

import json
import random

from common.data import load_data
from common.data.images import CELLS, EMPTY, ICONS, planned
from common.data.splits import bucket
from common.errors import RoadmapError
from common.models import MODELS_DIR
from common.recipes import llava
from common.recipes.llava import (
    PARTS,
    Answering,
    LlavaRecipe,
    Reading,
    Teacher,
    Translating,
    blank_page,
    build_llava,
    by_kind,
    conversation,
    correct,
    description,
    features,
    fresh_scene,
    interview,
    patches_of,
    train_only,
)
from common.recipes.trials import make
from common.text import IGNORE

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoProcessor, CLIPVisionModel, LlavaForConditionalGeneration

CLIP, CHAT = MODELS_DIR / "tiny-clip-emoji", MODELS_DIR / "tiny-qwen-zh-chat"
SMALL = LlavaRecipe(read_steps=2, align_steps=2, steps=3, batch=8, named=0.25, described=0.5)


@pytest.fixture(scope="module")
def built():
    return build_llava(CLIP, CHAT)


@pytest.fixture(scope="module")
def teacher(built):
    return Teacher(built[1], patches_of(built[0]), SMALL)


# ------------------------------------------------------------------------------------------------ the model


def test_parts_are_those_of_the_checkpoints(built):
    model, processor = built
    vision, language = CLIPVisionModel.from_pretrained(CLIP), AutoModelForCausalLM.from_pretrained(CHAT, dtype=torch.float32)
    theirs = vision.float().state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in model.model.vision_tower.state_dict().items())
    rows = len(language.get_input_embeddings().weight)
    table = model.model.language_model.embed_tokens.weight
    assert torch.equal(table[:rows], language.get_input_embeddings().weight) and len(table) == rows + 1
    assert model.lm_head.weight is table and model.generation_config.eos_token_id == language.generation_config.eos_token_id
    assert patches_of(model) == 16 and processor.tokenizer.padding_side == "right"


def test_processor_expands_the_picture_and_comes_back_equal(built, tmp_path):
    model, processor = built
    image = load_data("scenes")["validation"][0]["image"]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "左上角是什么？"}]}]
    text = processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    plain = conversation(("左上角是什么？", "猪"))
    assert text == processor.tokenizer.apply_chat_template(plain[:1], tokenize=False, add_generation_prompt=True)
    spoken = [*parts, {"role": "assistant", "content": [{"type": "text", "text": "猪"}]}]
    assert processor.apply_chat_template(spoken, tokenize=False) == processor.tokenizer.apply_chat_template(plain, tokenize=False)
    inputs = processor(images=image, text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == 16
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, back = AutoProcessor.from_pretrained(tmp_path), LlavaForConditionalGeneration.from_pretrained(tmp_path)
    twice = again(images=image, text=text, return_tensors="pt")
    assert all(torch.equal(twice[key], inputs[key]) for key in inputs)
    with torch.no_grad():
        assert torch.equal(back(**twice).logits, model(**inputs).logits)


def test_train_only_names_what_it_trains(built):
    model = built[0]
    for parts in (["projector"], ["vision"], ["projector", "language"], list(PARTS)):
        train_only(model, parts)
        found = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
        assert found == {PARTS[part] for part in parts}
    with pytest.raises(RoadmapError, match="no part tail; it has vision, projector, language"):
        train_only(model, ["tail"])


def test_a_list_of_names_reaches_the_tower_and_an_expression_does_not():
    for targets, inside in ((["q_proj", "k_proj", "v_proj", "o_proj"], 18), (r".*language_model.*\.(q|k|v|o)_proj", 0)):
        model = get_peft_model(build_llava(CLIP, CHAT)[0], LoraConfig(r=2, target_modules=targets))
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert sum("vision_tower" in name for name in trained) == inside and any("language_model" in name for name in trained)


# ------------------------------------------------------------------------------------------------ conversations


def test_labels_are_the_answers_and_their_end_tokens(built):
    model, processor = built
    turns = [("左上角是什么？", "青蛙"), ("图中有几个图案？", "三个")]
    row = features(processor, conversation(*turns), 16)
    learned = [i for i in row["labels"] if i != IGNORE]
    end = processor.tokenizer.eos_token
    assert processor.tokenizer.decode(learned) == "".join(answer + end for _, answer in turns)
    assert row["input_ids"].count(model.config.image_token_index) == 16
    assert all(label in (IGNORE, i) for i, label in zip(row["input_ids"], row["labels"]))


def test_batches_are_padded_on_the_right(teacher, built):
    batch = teacher.talks()
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    assert batch["pixel_values"].shape == (8, 3, 64, 64) and ids.shape == mask.shape == labels.shape
    assert (mask[:, 0] == 1).all() and (mask[:, 1:] <= mask[:, :-1]).all()  # ones, then zeros
    assert (labels[mask == 0] == IGNORE).all() and ((labels != IGNORE).sum(1) >= 2).all()
    assert ((ids == built[0].config.image_token_index).sum(1) == 16).all()


def test_scenes_belong_to_training_and_answers_follow_from_them():
    rng = random.Random(0)
    held_out = {frozenset(s.icons) for split in ("validation", "test") for s in planned()[split]}
    kinds = set()
    for _ in range(300):
        scene = fresh_scene(rng)
        assert bucket("".join(sorted(scene.icons))) == "train" and frozenset(scene.icons) not in held_out
        asked = interview(scene, rng)
        assert 1 <= len(asked) <= 2
        name = llava.names()
        for question, answer in asked:
            if "几" in question:
                kinds.add("count")
                assert answer == ("", "一个", "两个", "三个", "四个")[len(scene.icons)]
            elif question.endswith("在哪里？"):
                kinds.add("where")
                assert name[scene.cells[CELLS.index(answer)]] + "在哪里？" == question
            else:
                kinds.add("what")
                there = scene.cells[CELLS.index(question.removesuffix("是什么？"))]
                assert answer == (name[there] if there else EMPTY)
        everything = description(scene)[1]
        assert all(f"{cell}{name[icon] if icon else EMPTY}" in everything for cell, icon in zip(CELLS, scene.cells))
    assert kinds == {"count", "what", "where"}


def test_cells_are_labelled_by_their_place(teacher):
    torch.manual_seed(3)
    batch = teacher.cells()
    labels, cells = batch["labels"].view(-1, 4, 4), batch["cells"].view(-1, 4, 4)
    assert cells[0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    pictures = batch["pixel_values"] * teacher.std + teacher.mean
    for page, where in zip(pictures, labels):
        for y in (0, 1):
            for x in (0, 1):
                drawn = page[:, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32].min() < 0.9
                assert bool(drawn) == (int(where[2 * y, 2 * x]) < len(ICONS))


def test_a_blind_teacher_shows_blank_pages_with_the_same_words(teacher, built):
    blind = Teacher(built[1], 16, SMALL, blind=True)
    torch.manual_seed(0)
    seeing = teacher.talks()
    torch.manual_seed(0)
    blank = blind.talks()
    assert torch.equal(seeing["input_ids"], blank["input_ids"]) and torch.equal(seeing["labels"], blank["labels"])
    assert blank["pixel_values"].std(dim=(2, 3)).max() < 1e-6 < seeing["pixel_values"].std(dim=(2, 3)).min()


# ------------------------------------------------------------------------------------------------ training and measuring


def test_loss_is_the_librarys(built, teacher):
    model = built[0]
    batch = teacher.talks()
    with torch.no_grad():
        ours, theirs = Answering(model)(**batch).loss, model(**batch).loss
    assert abs(ours - theirs) < 1e-4


def test_tower_learns_what_is_where(built):
    model, processor = build_llava(CLIP, CHAT)
    teacher, reading = Teacher(processor, 16, SMALL), Reading(model)
    optimizer = torch.optim.AdamW(reading.parameters(), lr=2e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(30):
        loss = reading(**teacher.cells()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_projector_learns_the_words_for_what_the_tower_sees(built):
    """Told what is in the patches by their own features, in a few steps it explains part of the wanted vectors."""
    model, processor = build_llava(CLIP, CHAT)
    teacher, translating = Teacher(processor, 16, SMALL), Translating(model, processor.tokenizer)
    train_only(model, ["projector"])
    optimizer = torch.optim.AdamW(model.model.multi_modal_projector.parameters(), lr=3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        loss = translating(**teacher.cells()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.9
    wanted = translating.icons[:1] + translating.places[:1]
    table, ids = model.get_input_embeddings().weight, processor.tokenizer
    by_hand = sum(table[ids(word, add_special_tokens=False)["input_ids"]].mean(0) for word in (llava.names()[ICONS[0]], CELLS[0]))
    assert torch.allclose(wanted[0], by_hand, atol=1e-6)


def test_correct_agrees_with_generation(built):
    """Right token by token is what greedy decoding writes; a model that is right about some and wrong about others shows it."""
    model, processor = LlavaForConditionalGeneration.from_pretrained(MODELS_DIR / llava.NAME, dtype=torch.float32), built[1]
    rows = load_data("scenes")["validation"].select(range(24))
    told = correct(model.eval(), processor, rows)
    for row, right in zip(rows, told):
        text = processor.tokenizer.apply_chat_template(
            conversation((row["question"], ""))[:1], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(images=row["image"], text=text, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert right == (processor.tokenizer.decode(made) == row["answer"] + processor.tokenizer.eos_token)
    assert sum(told) > sum(correct(model, processor, rows, blind=True))


def test_accuracy_by_kind_and_blank_pages():
    found = by_kind([True, False, True, True], ["what", "what", "count", "count"])
    assert found == {"accuracy": 0.75, "count": 1.0, "what": 0.5}
    image = load_data("scenes")["validation"][0]["image"]
    assert blank_page(image).size == image.size and blank_page(image).getextrema() == ((255, 255),) * 3


def test_the_recipe_runs_and_what_it_writes_can_be_loaded(monkeypatch, tmp_path):
    real = load_data("scenes")
    few = {split: rows.select([*range(9), *range(len(rows) - 9, len(rows))]) for split, rows in real.items()}
    monkeypatch.setattr(llava, "load_data", lambda name: few if name == "scenes" else load_data(name))
    monkeypatch.setattr(llava, "LlavaRecipe", lambda: SMALL)
    folder = make(llava.NAME, out=tmp_path / llava.NAME, steps=2)
    card = json.loads((folder / "card.json").read_text())
    assert card["recipe"]["steps"] == 2 and set(card["held_out"]) == set(card["blind"]) and "what_openmoji" in card["blind"]
    assert "blind twin" in (folder / "README.md").read_text() and not list(tmp_path.glob(".*-run"))
    with pytest.raises(RoadmapError, match="--force to replace"):
        make(llava.NAME, out=folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    assert len(correct(model, processor, few["validation"])) == 18
