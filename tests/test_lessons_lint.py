"""Every lesson keeps the rules of the course that a program can check (see ``tests/lint.py``)."""

from pathlib import Path

import pytest

from tests.lint import ROOT, Lesson, chapter_findings, find_lessons, lint, repeated_code

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
