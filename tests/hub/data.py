"""Data sets as the Hub has them: columns, types, splits, hidden labels, file layout and revision of each registry entry.

The rows are made from the course's own tiny data, so answers stand in their contexts and lengths are plausible. Each
builder notes where the schema was read. Where it could not be verified, both plausible ones are built: the second under
the same name with the suffix ``-other``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.data import NER_TAGS, load_data

from datasets import ClassLabel, Dataset, Features, Image, List, Value

TEXT, WHOLE, SHORT = Value("string"), Value("int64"), Value("int32")
ROWS = {"train": 600, "validation": 160, "test": 160}
PARQUET = "refs~convert~parquet"  # the revision in which the Hub keeps data sets that had a loading script
HUB_TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
Files = dict[str, tuple[list[dict[str, Any]], Features | None]]


def build(root: Path) -> None:
    """Write every data set below a folder."""
    for builder in BUILDERS:
        builder(root)


def write(root: Path, repository: str, files: Files, *, revision: str = "main", configs: dict[str, Any] | None = None) -> None:
    """Write files of rows: parquet where there are features, else one JSON list.

    Args:
        root: Of all data sets.
        repository: Owner and name.
        files: Path in the repository: rows and features.
        revision: With ``~`` for a slash.
        configs: Configuration: split: pattern, for the README that tells ``datasets`` what is where.
    """
    folder = root / repository / revision
    for name, (rows, features) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if features is None:
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        else:
            Dataset.from_list(rows, features=features).to_parquet(str(path))
    if configs:
        lines = ["---", "configs:"]
        for config, splits in configs.items():
            lines += [f"- config_name: {config}", "  data_files:"]
            lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def some(name: str, split: str) -> list[dict[str, Any]]:
    """The first rows of a tiny data set."""
    rows = load_data(name)[split]
    return rows.select(range(min(ROWS[split], len(rows)))).to_list()


def sentiment(root: Path) -> None:
    """lansinuote/ChnSentiCorp: text and label. Not verified: whole numbers, or classes called "0" and "1"."""
    for suffix, label in (("", ClassLabel(names=["0", "1"])), ("-other", WHOLE)):
        files: Files = {}
        for split in ROWS:
            rows = [{"text": row["text"], "label": row["label"]} for row in some("sentiment", split)]
            for i in range(7, len(rows), 45):  # about 2 % are longer than 512 tokens
                rows[i]["text"] = "".join(row["text"] for row in rows[i : i + 14] if row["label"] == rows[i]["label"])[:900]
            files[f"data/{split}-00000-of-00001.parquet"] = (rows, Features({"text": TEXT, "label": label}))
        write(root, f"lansinuote/ChnSentiCorp{suffix}", files)


def clue(root: Path) -> None:
    """clue/clue, configurations tnews, afqmc and c3: its dataset card lists features and splits; test labels are hidden."""
    rng, files = random.Random(0), {}
    numbers = [str(n) for n in (100, 101, 102, 103, 104, 106, 107, 108, 109, 110, 112, 113, 114, 115, 116)]
    titles = Features({"sentence": TEXT, "label": ClassLabel(names=numbers), "idx": SHORT})
    pairs = Features({"sentence1": TEXT, "sentence2": TEXT, "label": ClassLabel(names=["0", "1"]), "idx": SHORT})
    choices = Features({"id": SHORT, "context": List(TEXT), "question": TEXT, "choice": List(TEXT), "answer": TEXT})
    for split in ROWS:
        hidden = split == "test"
        rows = [
            {"sentence": row["text"][:40], "label": -1 if hidden else rng.randrange(15), "idx": i}
            for i, row in enumerate(some("topics", split))
        ]
        files[f"tnews/{split}-00000-of-00001.parquet"] = (rows, titles)
        rows = [
            {**{side: row[side] for side in ("sentence1", "sentence2")}, "label": -1 if hidden else row["label"], "idx": i}
            for i, row in enumerate(some("pairs", split))
        ]
        files[f"afqmc/{split}-00000-of-00001.parquet"] = (rows, pairs)
        rows = [
            {
                "id": i,
                "context": row["context"].split("。"),
                "question": row["question"],
                "choice": row["choices"],
                "answer": "" if hidden else row["choices"][row["label"]],
            }
            for i, row in enumerate(some("multiple_choice", split))
        ]
        files[f"c3/{split}-00000-of-00001.parquet"] = (rows, choices)
    write(root, "clue/clue", files, configs={c: {s: f"{c}/{s}-*" for s in ROWS} for c in ("tnews", "afqmc", "c3")})


def names(root: Path) -> None:
    """levow/msra_ner (train, test) and peoples_daily_ner: features as in their former scripts; rows in the parquet branch."""
    features = Features({"id": TEXT, "tokens": List(TEXT), "ner_tags": List(ClassLabel(names=HUB_TAGS))})
    sets = {"levow/msra_ner": ("ner", ("train", "test")), "peoples-daily-ner/peoples_daily_ner": ("ner_daily", tuple(ROWS))}
    for repository, (task, splits) in sets.items():
        files: Files = {}
        for split in splits:
            rows = [
                {"id": str(i), "tokens": row["tokens"], "ner_tags": [HUB_TAGS.index(NER_TAGS[tag]) for tag in row["ner_tags"]]}
                for i, row in enumerate(some(task, split))
            ]
            for i in range(20, len(rows) - 4, 40):  # some sentences have several hundred characters
                for column in ("tokens", "ner_tags"):
                    rows[i][column] = [item for row in rows[i : i + 4] for item in row[column]]
            files[f"{repository.partition('/')[2]}/{split}/0000.parquet"] = (rows, features)
        write(root, repository, files, revision=PARQUET)


def corpus(root: Path) -> None:
    """wikimedia/wikipedia, configuration 20231101.zh: id, url, title, text (its dataset card); train only."""
    texts = [row["text"] for row in load_data("corpus")["train"].select(range(3_000)).to_list()]
    rows = [
        {
            "id": str(i),
            "url": f"https://zh.wikipedia.org/wiki/{i}",
            "title": texts[8 * i][:6],
            "text": "\n\n".join(texts[8 * i : 8 * i + 8]),
        }
        for i in range(len(texts) // 8)
    ]
    features = Features({column: TEXT for column in ("id", "url", "title", "text")})
    path = "20231101.zh/train-00000-of-00006.parquet"
    write(root, "wikimedia/wikipedia", {path: (rows, features)}, configs={"20231101.zh": {"train": "20231101.zh/train-*"}})


def questions(root: Path) -> None:
    """hfl/cmrc2018: SQuAD's columns, several answers in validation and test; wordings unlike those of the tiny data."""
    features = Features(
        {"id": TEXT, "context": TEXT, "question": TEXT, "answers": {"text": List(TEXT), "answer_start": List(SHORT)}}
    )
    forms = ["该项目是由哪两个公司合作开发的？", "文中提到的事件发生于何时？", "他毕业于哪所学校？", "这种植物分布在哪些地区？"]
    files: Files = {}
    for split in ROWS:
        rows, known = [], some("mrc", split)
        for i, row in enumerate(known):
            if not row["answers"]["text"]:
                continue  # CMRC has no questions without an answer
            context = row["context"] + "".join(known[(i + k) % len(known)]["context"] for k in (5, 11))
            copies = 1 if split == "train" else 3
            answers = {key: list(row["answers"][key][:1]) * copies for key in ("text", "answer_start")}
            rows.append({"id": f"{split}_{i}", "context": context[:900], "question": forms[i % 4], "answers": answers})
        files[f"data/{split}-00000-of-00001.parquet"] = (rows, features)
    write(root, "hfl/cmrc2018", files, configs={"default": {s: f"data/{s}-*" for s in ROWS}})


def instructions(root: Path) -> None:
    """shibing624/alpaca-zh: one JSON list of instruction, input, output (its dataset card); open, long answers."""
    answers = [row["answer"] for row in some("faq", "train")]
    wishes = [
        "给出三个保持健康的建议。",
        "写一首关于春天的诗。",
        "解释什么是光合作用。",
        "列出五种常见的水果。",
        "将下面的句子翻译成英文。",
    ]
    rows = [
        {
            "instruction": f"{wishes[i % 4]}（{i}）",
            "input": "我喜欢读书。" if i % 3 == 0 else "",
            "output": "\n".join(f"{n}. {answers[(3 * i + n) % len(answers)][:80]}" for n in (1, 2, 3)),
        }
        for i in range(500)
    ]
    write(root, "shibing624/alpaca-zh", {"alpaca_gpt4_data_zh.json": (rows, None)})


def legal_advice(root: Path) -> None:
    """Skepsun/lawyer_llama_data: instruction, input, output, history. Not verified: with history, or without."""
    for suffix, more in (("", {"history": []}), ("-other", {})):
        rows = [
            {
                "instruction": f"{row['question'][2:]}我应该怎么办？第{i}次",
                "input": "",
                "output": "你好，" + row["answer"] * 3,
                **more,
            }
            for i, row in enumerate(some("faq", "train"))
        ]
        for i in (3, 9, 77):  # some answers stand under two questions
            rows[i]["output"] = rows[i + 1]["output"]
        write(root, f"Skepsun/lawyer_llama_data{suffix}", {"train.json": (rows, None)})


def headlines(root: Path) -> None:
    """hugcyp/LCSTS: summary and text (its dataset viewer), rows in the parquet branch."""
    files: Files = {}
    for split in ROWS:
        rows = [{"summary": row["summary"], "text": row["document"][:140]} for row in some("headlines", split)]
        files[f"default/{split}/0000.parquet"] = (rows, Features({"summary": TEXT, "text": TEXT}))
    write(root, "hugcyp/LCSTS", files, revision=PARQUET)


def pictures(root: Path) -> None:
    """jxie/flickr8k: image and five captions; the_cauldron, clevr: lists of images (RGBA) and of texts with user, assistant."""
    rng, files = random.Random(0), {}
    who, does = (
        ["dog", "boy", "girl", "woman", "brown horse", "man in a red shirt"],
        ["runs on the grass", "jumps", "sits on a bench"],
    )
    emoji = load_data("image_text")["train"].select(range(240))
    for split, start in (("train", 0), ("validation", 160), ("test", 200)):
        rows = []
        for i in range(start, start + (160 if split == "train" else 40)):
            captions = {f"caption_{k}": f"A {rng.choice(who)} {rng.choice(does)} , picture {i} .{k}" for k in range(5)}
            rows.append({"image": emoji[i]["image"].convert("RGB").resize((320, 240)), **captions})
        features = Features({"image": Image(), **{f"caption_{k}": TEXT for k in range(5)}})
        files[f"data/{split}-00000-of-00001.parquet"] = (rows, features)
    write(root, "jxie/flickr8k", files, configs={"default": {s: f"data/{s}-*" for s in ROWS}})
    features = Features({"images": List(Image()), "texts": List({"user": TEXT, "assistant": TEXT, "source": TEXT})})
    colours, shapes = ["red", "blue", "green", "gray", "cyan"], ["cube", "sphere", "cylinder"]

    def asked() -> dict[str, str]:
        colour, shape = rng.choice(colours), rng.choice(shapes)
        question, answer = rng.choice(
            [
                (f"How many {colour} {shape}s are there?", f"{rng.randrange(6)}."),
                (f"Is there a {colour} {shape}?", rng.choice(["Yes.", "No."])),
                (f"What color is the {shape}?", f"{colour.capitalize()}."),
            ]
        )
        return {"user": f"{question}\nGive a very brief answer.", "assistant": answer, "source": "CLEVR"}

    scenes = load_data("scenes")["train"].select(range(120))
    drawn = [scene["image"].convert("RGBA").resize((48, 32)) for scene in scenes]
    rows = [{"images": [rng.choice(drawn)], "texts": [asked() for _ in range(3)]} for _ in range(2_400)]
    path = "clevr/train-00000-of-00024.parquet"
    write(root, "HuggingFaceM4/the_cauldron", {path: (rows, features)}, configs={"clevr": {"train": "clevr/train-*"}})


BUILDERS: list[Callable[[Path], None]] = [
    *(sentiment, clue, names, corpus, questions, instructions),
    *(legal_advice, headlines, pictures),
]
