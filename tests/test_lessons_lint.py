"""Every lesson keeps the rules of the course that a program can check (see ``tests/lint.py``)."""

from pathlib import Path

import pytest

from tests.lint import PLAIN, ROOT, Lesson, chapter_findings, find_lessons, lint, plain_language, repeated_code, spoken

CHAPTERS = sorted(path for path in ROOT.glob("0*-*") if path.is_dir())


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.name)
def test_lessons_of(chapter: Path):
    lessons = [Lesson.read(path) for path in find_lessons(ROOT) if path.is_relative_to(chapter)]
    findings = [f"{lesson.path.name}: {finding}" for lesson in lessons for finding in lint(lesson)]
    findings += [f"{path.name}: {finding}" for path, finding in chapter_findings(chapter)]
    assert not findings, "\n".join(["", *findings])


def test_no_code_is_repeated_between_lessons():
    findings = [f"{path.name} {finding}" for path, finding in repeated_code(map(Lesson.read, find_lessons(ROOT)))]
    assert not findings, "\n".join(["", *findings])


def test_lessons_are_found(tmp_path: Path):
    lessons = ["01-first/01-a.ipynb", "01-first/02-b/02-deeper.ipynb", "09-last/12-c.ipynb"]
    others = ["01-first/notes.ipynb", "01-first/.ipynb_checkpoints/01-a.ipynb", "outputs/01-a.ipynb", "01-first/03-d.py"]
    for name in lessons + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_lessons(tmp_path)] == lessons
    assert CHAPTERS  # the same pattern finds the chapters of this repository


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("0*-*/README.md"))], ids=str)
def test_pages_are_in_plain_language(path: Path):
    assert list(plain_language(path.read_text(encoding="utf-8"))) == []


def test_docstrings_and_errors_are_in_plain_language():
    findings = [
        f"{path.relative_to(ROOT)}:{line} {finding}"
        for path in sorted((ROOT / "common").rglob("*.py"))
        for line, text in spoken(path.read_text(encoding="utf-8"))
        for finding in plain_language(text)
    ]
    assert not findings, "\n".join(["", *findings])


def test_what_a_module_says_is_found():
    source = """def f(n):
    'Silly.'
    raise RoadmapError(f'{n} is naughty.')
"""
    assert [(line, list(plain_language(text))) for line, text in spoken(source)] == [
        (1, ["'Silly': write say what is wrong"]),
        (3, ["'naughty': write say what is wrong"]),
    ]


def test_lessons_in_plain_language_exist():
    names = [path.as_posix() for path in find_lessons(ROOT)]
    assert all(any(name in path for path in names) for name in PLAIN)


LONG = "This sentence has " + "very " * 27 + "many words."


@pytest.mark.parametrize(
    "text, expected",
    [
        (LONG, "a sentence of 32 words; at most 30: 'This sentence has very very very ...'"),
        ("One. " + LONG.replace("many", "many [more](x.md)"), "a sentence of 33 words"),
        ("We foretell the bytes.", "'foretell': write predict"),
        ("It takes half as many bytes again.", "'half as many bytes again': write 1.5 times"),
        ("The right pair is first.", "'right pair': write positive pair"),
        ("It costs 5 bits a character.", "'bits a character': write bits per character"),
        ("A rate of 40 tokens a second.", "'tokens a second': write tokens per second"),
    ],
)
def test_language_that_is_not_plain_is_found(text: str, expected: str):
    (finding,) = plain_language(text)
    assert finding.startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "A short sentence. " * 20,
        "* a point of a list\n" * 20,
        "| a table | " + "word " * 40 + "|",
        "# A heading with " + "very " * 30 + "many words",
        "Before the code:\n\n```python\n" + "right_pair = dearer " * 20 + "\n```\n\nand after it.",
        "The variable `right pair` and the formula $" + "x + " * 40 + "1$ count as one word each.",
        "<details><summary>Solution</summary>" + LONG + "</details>",
        "A link [to a page](" + "word/" * 40 + ") is short.",
    ],
)
def test_plain_language_has_no_findings(text: str):
    assert list(plain_language(text)) == []
