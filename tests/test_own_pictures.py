"""Pictures of one's own: folders with a table, LLaVA's JSON, and pictures that are missing or damaged."""

import json
import shutil

from common import load_data
from common.data import DATA, SPLITS

import pytest

from tests.test_own_data import HERE, check, refused, whole, write


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(HERE / "pictures", tmp_path / "pictures")
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", ["pictures", "pictures_llava_captions.json"])
def test_captions(name):
    splits = load_data("image_text", file=HERE / name)
    check(splits, 12)
    assert splits["train"].features == DATA["image_text"].features()
    (row,) = [row for row in whole(splits) if row["caption_zh"] == "一个红色的圆"]
    assert row["image"].size == (24, 24) and row["image"].getpixel((12, 12)) == (255, 0, 0) and row["caption_en"] == ""


@pytest.mark.parametrize("name, rows", [("pictures_llava.json", 24), ("pictures_table.csv", 12)])
def test_questions_about_pictures(name, rows):
    splits = load_data("scenes", file=HERE / name)
    check(splits, rows)
    assert splits["train"].features == DATA["scenes"].features()
    for row in whole(splits):
        if row["question"] == "这是什么颜色？" and row["answer"] == "蓝色":
            assert row["image"].getpixel((12, 12)) == (0, 0, 255)
    pictures = [{row["image"].tobytes() for row in splits[split]} for split in SPLITS]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 12  # no picture is in two splits


def test_a_folder_with_a_table_of_two_languages_and_copies_under_other_names(folder):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    (folder / "metadata.jsonl").unlink()
    shutil.copy(folder / "red_circle.png", folder / "again.png")
    lines = [f"{row['file_name']},{row['text']},{row['file_name'][:-4]}\n" for row in rows]
    write(folder / "metadata.csv", "file_name,caption_zh,caption_en\n" + "".join(lines) + "again.png,一个红色的圆,x\n")
    splits = load_data("image_text", file=folder)
    check(splits, 12)
    assert {row["caption_en"] for row in whole(splits)} >= {"red_square", "black_circle"}


def test_folders_of_splits(folder):
    parent = folder.parent / "all"
    shutil.copytree(folder, parent / "train")
    shutil.copytree(folder, parent / "test")
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    write(parent / "test" / "metadata.jsonl", "".join(lines[:2]))
    splits = load_data("image_text", file=parent)
    assert {split: len(splits[split]) for split in SPLITS} == {"train": 9, "validation": 1, "test": 2}


def llava(path, conversations, image="pictures/red_circle.png"):
    return write(path, json.dumps([{"image": image, "conversations": conversations}]))


ASK, SAY = {"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}


@pytest.mark.parametrize(
    "conversations, says",
    [
        ([SAY, ASK], "not of human and gpt in turn"),
        ([ASK, SAY, ASK], "not of human and gpt in turn"),
        ("x", "not of human and gpt in turn"),
        ([ASK | {"value": "<image><image>"}, SAY], "<image> stands in 2 places"),
        ([ASK, SAY, ASK, SAY], "<image> stands in 2 places"),
        ([ASK | {"value": "<image>\n"}, SAY], "no question"),
        ([ASK, SAY | {"value": None}], "no answer"),
    ],
)
def test_faults_of_conversations(folder, conversations, says):
    refused(f"row 1: {says}" if says.startswith("no ") else says, "scenes", file=llava(folder.parent / "a.json", conversations))


def test_faults_of_pictures(folder):
    (folder / "red_circle.png").write_bytes((folder / "red_circle.png").read_bytes()[:60])
    (folder / "red_square.png").write_text("x")
    (folder / "blue_circle.png").unlink()
    says = refused("pictures has 3 rows that cannot be used", "image_text", file=folder)
    assert "red_circle.png cannot be opened" in says and "there is no picture blue_circle.png in pictures" in says
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"file_name": "green_circle.png", "text": ""}\n')
    refused("has 4 rows", "image_text", file=folder)
    refused("no picture", "scenes", file=llava(folder.parent / "a.json", [ASK, SAY], None))
    refused("not the name of a file", "scenes", file=llava(folder.parent / "a.json", [ASK, SAY], ["a.png", "b.png"]))
    two = [ASK, SAY, {"from": "human", "value": "?"}, SAY]
    refused("2 questions about one picture", "image_text", file=llava(folder.parent / "a.json", two))


def test_folders_without_a_table(folder):
    write(folder / "metadata.csv", "file_name,text\n")
    refused("has both metadata.jsonl and metadata.csv", "image_text", file=folder)
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).unlink()
    refused("The folder pictures has no metadata.jsonl or metadata.csv", "image_text", file=folder)
    refused("There is no file", "image_text", file=folder / "nothing")


def test_the_order_does_not_depend_on_where_the_folder_lies(tmp_path):
    there = tmp_path / "elsewhere" / "pictures"
    shutil.copytree(HERE / "pictures", there)
    for task, name in (("image_text", "pictures"), ("scenes", "pictures_llava.json")):
        shutil.copy(HERE / "pictures_llava.json", there.parent)
        here, moved = load_data(task, file=HERE / name), load_data(task, file=there.parent / name)
        for split in here:
            assert here[split].remove_columns("image")[:] == moved[split].remove_columns("image")[:]
