"""Emoji and scenes: two real styles, no concept and no set of icons on both sides, answers that follow from the pixels."""

import io

from common.data import SPLITS, images, load_data
from common.data.images import CELLS, COUNTS, EMPTY, ICONS, SIZE, STYLES, Scene, compose, concepts, draw, planned, questions
from common.errors import RoadmapError

import numpy as np
import pytest
from PIL import Image


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def rows(name: str, split: str):
    """Everything but the pictures, which are slow to decode."""
    return load_data(name)[split].remove_columns("image")


# ------------------------------------------------------------------------------------------------ pictures with names


def test_every_concept_has_two_names_and_two_different_pictures():
    assert len(concepts()) == 1_913
    for key in ("emoji", "caption_zh", "caption_en"):
        assert len({getattr(c, key) for c in concepts()}) == 1_913
    assert sum(not c.group for c in concepts()) == 16
    for concept in concepts()[::7]:
        drawn = [pixels(draw(concept.emoji, style)) for style in STYLES]
        assert all(p.shape == (SIZE, SIZE, 3) and p.max() == 255 for p in drawn)
        assert all((p.min(axis=2) < 250).mean() > 0.01 for p in drawn), concept  # something is there
        assert np.abs(drawn[0] - drawn[1]).mean() > 2, concept


def test_a_glyph_that_is_not_drawn_is_an_error(monkeypatch):
    """What a Pillow without colour fonts would do: a blank page, and a data set of blank pages."""
    font, codes = images._openmoji_font()
    monkeypatch.setattr(images, "_openmoji_font", lambda: (font, codes | {"🐖": " "}))
    with pytest.raises(RoadmapError, match="drew nothing for 🐖"):
        draw("🐖", "openmoji")


def test_sequences_are_one_glyph_without_a_layout_library():
    """A flag, a keycap and a joined person are one drawing each, and not that of their first character."""
    for emoji, first in (("🇨🇳", "🇨"), ("👩‍🚒", "👩"), ("❤️‍🔥", "❤️")):
        whole = draw(emoji, "openmoji")
        assert (pixels(whole).min(axis=2) < 200).any()
        if any(c.emoji == first for c in concepts()):
            assert pixels(whole).tobytes() != pixels(draw(first, "openmoji")).tobytes()


def test_splits_of_pictures():
    train, validation, test = (rows("image_text", split) for split in SPLITS)
    seen = set(train["emoji"])
    assert set(train["style"]) == {"twemoji"} and len(seen) == len(train) == 1_547
    transfer = {name: [r for r in part if r["emoji"] in seen] for name, part in (("validation", validation), ("test", test))}
    assert {r["style"] for part in transfer.values() for r in part} == {"openmoji"}
    assert [len(part) for part in transfer.values()] == [344, 1_203]
    assert not {r["emoji"] for r in transfer["validation"]} & {r["emoji"] for r in transfer["test"]}
    unseen = {name: [r for r in part if r["emoji"] not in seen] for name, part in (("validation", validation), ("test", test))}
    assert not {r["emoji"] for r in unseen["validation"]} & {r["emoji"] for r in unseen["test"]}
    for part in unseen.values():  # each in both styles
        first, second = (sorted(r["emoji"] for r in part if r["style"] == style) for style in STYLES)
        assert first == second


def test_forms_of_one_concept_stay_together():
    family = {c.emoji: c.family for c in concepts()}
    assert family["👩‍🚒"] == family["👨‍🚒"] == family["🧑‍🚒"] and family["🙋‍♀️"] == family["🙋‍♂️"] == family["🙋"]
    seen = {family[emoji] for emoji in rows("image_text", "train")["emoji"]}
    for split in SPLITS[1:]:
        part = [r["emoji"] for r in rows("image_text", split) if r["style"] == "twemoji"]
        assert not {family[emoji] for emoji in part} & seen


def test_pictures_are_those_of_the_row():
    for row in load_data("image_text")["test"].select(range(0, 1_500, 150)):
        assert row["image"].mode == "RGB"
        assert (pixels(row["image"]) == pixels(draw(row["emoji"], row["style"]))).all()
        assert row["caption_zh"] and row["caption_en"]


# ------------------------------------------------------------------------------------------------ scenes


def read_scene(image, style: str) -> tuple[str | None, ...]:
    """The emoji in each cell, read from the pixels alone."""
    half = SIZE // 2
    known = {pixels(images._small(emoji, style)).tobytes(): emoji for emoji in ICONS}
    found = []
    for i in range(4):
        x, y = i % 2 * half, i // 2 * half
        cell = pixels(image.crop((x, y, x + half, y + half)))
        found.append(None if cell.min() == 255 else known[cell.tobytes()])
    return tuple(found)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_pixels(split):
    data = load_data("scenes")[split]
    name = images.names()
    wrong = 0
    for row in data.select(range(0, len(data), 5)):
        cells = read_scene(row["image"], row["style"])
        here = [name[emoji] for emoji in cells if emoji]
        if row["kind"] == "count":
            right = COUNTS[len(here)]
        elif row["kind"] == "what":
            emoji = cells[next(i for i, cell in enumerate(CELLS) if row["question"].startswith(cell))]
            right = name[emoji] if emoji else EMPTY
        else:
            asked = row["question"].removesuffix("在哪里？")
            assert here.count(asked) == 1  # otherwise there would be two right answers, or none
            right = CELLS[[name.get(emoji or "") for emoji in cells].index(asked)]
        wrong += row["answer"] != right
    assert wrong == 0


def test_no_set_of_icons_is_in_two_splits():
    plan = planned()
    sets = {split: {frozenset(scene.icons) for scene in plan[split]} for split in SPLITS}
    assert not sets["train"] & sets["validation"] and not sets["train"] & sets["test"] and not sets["validation"] & sets["test"]
    assert [len({scene.cells for scene in plan[split]}) for split in SPLITS] == list(images.SCENES.values())
    assert {emoji for scene in plan["train"] for emoji in scene.icons} == set(ICONS)  # every icon is known, no combination


def test_styles_and_sizes_of_scenes():
    for split, count in images.SCENES.items():
        part = rows("scenes", split)
        styles = STYLES if split == "test" else STYLES[:1]
        assert len(part) == 3 * count * len(styles) and set(part["style"]) == set(styles)
        assert sorted(set(part["kind"])) == ["count", "what", "where"]
    test = rows("scenes", "test")
    first, second = (test.filter(lambda row, s=s: row["style"] == s) for s in STYLES)
    assert first["question"][:] == second["question"][:] and first["answer"][:] == second["answer"][:]


def test_icons_are_known_to_the_vision_tower():
    seen = set(rows("image_text", "train")["emoji"])
    assert set(ICONS) <= seen and len(ICONS) == len(set(ICONS)) == 32
    assert len(set(images.names().values())) == 32 and max(map(len, images.names().values())) == 2


def test_guessing_does_not_pay():
    """The most frequent answer of each kind, which a blind model would learn, is right at most every third time or so."""
    test = rows("scenes", "test")
    for kind in ("count", "what", "where"):
        answers = [r["answer"] for r in test if r["kind"] == kind]
        assert max(answers.count(a) for a in set(answers)) / len(answers) < 0.42


def test_a_scene_by_hand():
    scene = Scene((None, "🐸", "🍓", None), asked=(0, "🍓"))
    assert questions(scene) == [
        ("count", "图中有几个图案？", "两个"),
        ("what", "左上角是什么？", "空白"),
        ("where", "草莓在哪里？", "左下角"),
    ]
    for style in STYLES:
        assert read_scene(compose(scene, style), style) == scene.cells


def test_pictures_are_stored_without_loss():
    scene = Scene(("🐸", None, None, None), asked=(0, "🐸"))
    stored = images._png(compose(scene, "openmoji"))
    assert (pixels(Image.open(io.BytesIO(stored["bytes"]))) == pixels(compose(scene, "openmoji"))).all()


# ------------------------------------------------------------------------------------------------ the Hub's columns


def test_rows_of_the_hub_become_rows_here():
    """The two converters against the columns that the Hub's cards state; the pictures themselves are passed on."""
    picture = Image.new("RGB", (8, 8))
    photo = images._from_flickr({"image": picture, "caption_0": "A dog runs .", "caption_1": "A dog ."})
    assert (
        photo["image"] is picture and photo["caption_en"] == "A dog runs ." and set(photo) == set(images._image_text_features())
    )
    assert photo["group"] == "dog"  # the first subject that the caption names
    assert images._from_flickr({"image": picture, "caption_0": "A boy and his dog ."})["group"] == "boy"
    assert images._from_flickr({"image": picture, "caption_0": "Boys play hotdog games ."})["group"] == ""
    turns = [{"user": "How many cubes are there?", "assistant": "3.", "source": "CLEVR"}]
    scene = images._from_cauldron({"images": [picture], "texts": turns})
    assert scene["kind"] == "count" and scene["answer"] == "3." and set(scene) == set(images._scenes_features())
