"""``python -m common data --file``, and the page of formats."""

from common.course import cli
from common.data.readers import READERS

import pytest

from tests import formats
from tests.test_own_data import HERE, REVIEWS, table


def said(capsys, *arguments) -> tuple[int, str]:
    status = cli.main(["data", *map(str, arguments)])
    return status, "".join(capsys.readouterr())


def test_a_report_counts_rows_labels_lengths_faults_and_shows_examples(tmp_path, capsys):
    path = table(tmp_path / "a.csv", [*REVIEWS, REVIEWS[0], ("没有标签", ""), ("长" * 600, "好")], ("review", "stars"), ";")
    status, text = said(capsys, "--file", path, "--as", "sentiment", "--columns", "text=review", "label=stars")
    assert status == 1
    for line in (
        "the columns are separated by a semicolon",
        "a.csv: 1 row with faults left out: line 43: no label.",
        "42 rows, 41 kept; left out: 1 repeated.",
        "rows       43 read, 1 with faults, 41 kept",
        "splits     train 33, validation 4, test 4; no text is in two splits",
        "labels     好 21, 坏 20",
        "characters median 10, 95 % at most 10, longest 600",
        "(tiny-bert-zh; 1 are longer than the 512 that it reads)",
        "1 rows cannot be used.",
    ):
        assert line in text
    assert text.count("{'text': ") == 3


@pytest.mark.parametrize(
    "task, name", [(task, name) for task, files in formats.EXAMPLES.items() for name, options in files if not options]
)
def test_a_report_on_every_example(task, name, capsys):
    status, text = said(capsys, "--file", HERE / name, "--as", task)
    assert status == 0 and "no text is in two splits" in text and "tokens     median" in text


@pytest.mark.parametrize(
    "task, name, labels",
    [
        ("ner", "names.bmes", "LOC 7, PER 6, ORG 6"),
        ("mrc", "questions_squad_v2.json", "with an answer 10, without an answer 10"),
        ("multiple_choice", "choices_c3.json", "choice 3 3, choice 0 3"),
        ("pairs", "pairs.tsv", "same 10, different 10"),
        ("instructions", "chats_sharegpt.json", "4 messages 12"),
    ],
)
def test_labels_of_other_tasks(task, name, labels, capsys):
    assert labels in said(capsys, "--file", HERE / name, "--as", task)[1]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--file", "nothing.csv", "--as", "ner"], "error: There is no file nothing.csv"),
        (["--file", "nothing.json", "--as", "ner"], "error: There is no file nothing.json"),
        (["--file", "a.csv"], "error: Say what the file is for: --as TASK"),
        (["--file", "a.csv", "--as", "nerr"], "error: There is no data set that a file can stand for named 'nerr'"),
        (["--file", "a.csv", "--as", "pairs", "--columns", "label"], "error: 'label' names no column"),
    ],
)
def test_errors_are_one_sentence(arguments, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, text = said(capsys, *arguments)
    assert status == 2 and text.startswith(says) and text.count("\n") == 1


def test_splits_and_tables_without_names(tmp_path, capsys):
    files = [table(tmp_path / "train.csv", REVIEWS[:30]), table(tmp_path / "test.csv", REVIEWS[30:])]
    assert "splits     train 28, validation 2, test 10" in said(capsys, "--file", *files, "--as", "topics")[1]
    path = HERE / "pairs_no_header.tsv"
    assert said(capsys, "--file", path, "--as", "pairs", "--no-header")[0] == 0
    columns = ["sentence1=1", "sentence2=0", "label=2"]
    assert "{'sentence1': '我想把东西退掉'" in said(capsys, "--file", path, "--as", "pairs", "--columns", *columns)[1]


def test_the_page_of_formats_is_up_to_date():
    assert formats.PAGE.read_text(encoding="utf-8") == formats.page(), "make it anew: python -m tests.formats"
    shown = {name for files in formats.EXAMPLES.values() for name, _ in files}
    kept = {path.name for path in HERE.iterdir()} - {"reviews_mark.csv", "scores.csv"}
    assert shown == kept, "every example is shown"
    assert {READERS[task].read for task in formats.EXAMPLES} == {reader.read for reader in READERS.values()}
