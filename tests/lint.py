#!/usr/bin/env python3
"""Check lessons against the course's own rules; print one line per finding.

usage: python tests/lint.py [NOTEBOOK ...]      (default: every lesson of every chapter)
exit status: 0 no findings, 1 findings, 2 nothing to check. Standard library only.

A check is a function from a :class:`Lesson` to findings; :data:`CHECKS` lists them. What a program cannot judge
(is the idea clear, is every Chinese example glossed) is for a reader.
"""

from __future__ import annotations

import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PATTERN = "0*-*/**/[0-9][0-9]-*.ipynb"

CELLS = range(25, 61)
WORDS = range(900, 2001)
LINES = {"median": 6, "90th percentile": 20, "longest": 45}  # non-blank lines of a code cell
ASSERTS = 3
EXERCISES = range(2, 5)
OUTPUT_CHARACTERS = 6000
NOTEBOOK_BYTES = 1_500_000
REPEATED_LINES = 8
BUDGET = {"budget_seconds": 75.0, "budget_mb": 2000.0}  # reference seconds beside the imports, see calibration.py
OTHER_KEYS = {"demo"}  # what else metadata.roadmap may hold (see common.course.lessons)
BUDGET_CEILING = {"budget_seconds": 120.0, "budget_mb": 2500.0}
CARD = {"You will learn": (), "You need": (), "Data and model": ("tiny", "full"), "Time and memory": ("tiny", "full")}
ENDING = ["Result", "Make it yours", "Exercises", "Sources"]

ABSOLUTE_PATH = re.compile(
    r"(?<![\w:/.])(/(?:home|root|Users|tmp|var|work|workspace|mnt|opt|content|kaggle|data)/[\w.\-/]+|[A-Z]:\\\w[\w\\]*)"
)
SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|AKIA)[A-Za-z0-9_-]{16,}")
SHELL_INSTALL = re.compile(r"(?m)^\s*[!%]+\s*(?:\S*python\S*\s+-m\s+)?(?:pip3?|uv|conda|mamba|apt|apt-get)\s")
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
WORKSHOP = {  # words about how the course was made, or about somebody's machine, instead of about the subject
    r"\bissue\s+#\d+|\bpull request\s+#\d+|\bPR\s+#\d+": "a ticket number",
    r"\b(?:this|my|our|previous|last|earlier)\s+(?:session|agent|helper)\b": "talk about a work session",
    r"\bas an AI\b|\bAI assistant\b": "talk about the author",
    r"\b[\w-]+(?:\.[\w-]+)*\.(?:internal|corp|lan)\b|\broot@[\w.-]+": "the name of a private host",
    r"(?<![\w-])(?:[\w-]+\.)*(?:pypi|test\.pypi|files\.pythonhosted|mirrors?)\.[a-z][\w.-]+": "the name of a package index host",
}
WIDGET_BARS = re.compile(r"\btqdm\.(?:auto|notebook|autonotebook)\b")


class Lesson:
    """A notebook's JSON with the views that the checks need."""

    def __init__(self, path: Path, notebook: Mapping[str, Any], size: int = 0) -> None:
        self.path, self.notebook, self.size = path, notebook, size
        self.cells: list[Mapping[str, Any]] = notebook["cells"]

    @classmethod
    def read(cls, path: Path) -> Lesson:
        """Read a file.

        Raises:
            ValueError: If it is not a notebook.
        """
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        if not isinstance(notebook, dict) or "cells" not in notebook:
            raise ValueError("no cells")
        return cls(path, notebook, len(text.encode()))

    @cached_property
    def code(self) -> list[tuple[int, Mapping[str, Any], str]]:
        """Index, cell and source of each code cell."""
        return [(i, cell, source(cell)) for i, cell in enumerate(self.cells) if cell["cell_type"] == "code"]

    @cached_property
    def markdown(self) -> list[tuple[int, str]]:
        """Index and source of each markdown cell."""
        return [(i, source(cell)) for i, cell in enumerate(self.cells) if cell["cell_type"] == "markdown"]

    @cached_property
    def trees(self) -> list[tuple[int, ast.Module]]:
        """Index and syntax tree of each code cell that parses."""
        return [(i, tree) for i, _, text in self.code if (tree := parse(text))]

    @cached_property
    def headings(self) -> list[tuple[int, int, str]]:
        """Cell index, level and text of each heading, outside code fences."""
        pattern = re.compile(r"(?m)^(#{1,6}) +(.+?)\s*$")
        return [(i, len(m[1]), m[2]) for i, text in self.markdown for m in pattern.finditer(without_code(text))]

    def section(self, title: str) -> range:
        """The cells from a ``## title`` up to the next heading of its level; empty if there is none."""
        starts = [i for i, level, text in self.headings if level == 2 and text == title]
        if not starts:
            return range(0)
        ends = [i for i, level, _ in self.headings if level <= 2 and i > starts[0]]
        return range(starts[0], ends[0] if ends else len(self.cells))


# ---------------------------------------------------------------------------------------------------------- reading


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text, which the format stores as a string or as a list of lines."""
    return "".join(cell["source"])


def is_claim(cell: Mapping[str, Any]) -> bool:
    """Whether a cell only asserts what a model has learned; it belongs to the cell before it."""
    return "claim" in cell.get("metadata", {}).get("tags", [])


def parse(code: str) -> ast.Module | None:
    """The syntax tree of a cell, shell and magic lines replaced; None if it does not parse."""
    for text in (code, without_magics(code)):
        try:
            return compile(text, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)  # type: ignore[return-value]
        except SyntaxError:
            continue
    return None


def without_magics(code: str) -> str:
    """Code with its ``!shell`` and ``%magic`` lines replaced by ``pass``; a ``%%cell`` magic leaves nothing."""
    return "" if code.lstrip().startswith("%%") else re.sub(r"(?m)^(\s*)(?:!|%[a-zA-Z]).*$", r"\1pass", code)


def without_code(markdown: str) -> str:
    """Markdown without fenced blocks and inline code."""
    return re.sub(r"(?ms)^\s*(```|~~~).*?^\s*\1\s*$|`[^`\n]*`", " ", markdown)


def words(markdown: str) -> int:
    """Words of prose: no code, formulas, addresses or tags; two Chinese characters count as one word."""
    text = re.sub(r"(?s)\$\$.*?\$\$|\$[^$\n]+\$|https?://[^\s)]+|<[^>]+>|\]\([^)]*\)", " ", without_code(markdown))
    return len(re.findall(r"[A-Za-z][\w'’-]*", text)) + len(re.findall(r"[\u4e00-\u9fff]", text)) // 2


def text_of(output: Mapping[str, Any]) -> str:
    """All text that an output holds, in whatever form."""
    data = [value for key, value in output.get("data", {}).items() if key.startswith("text/")]
    return "".join("".join(part) for part in (output.get("text", ""), *data, output.get("traceback", [])))


def tags(cell: Mapping[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """Calls of ``name(...)`` or ``anything.name(...)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "id", None), getattr(node.func, "attr", None)):
            yield node


def exercises(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The markdown of each exercise, from its numbered head to the next; code cells appear as fences."""
    parts, inside = [], False
    for cell in cells:
        text = source(cell)
        if cell["cell_type"] == "markdown" and (heading := re.search(r"(?m)^## +(.+?)\s*$", text)):
            inside = heading[1] == "Exercises"
        if inside:
            parts.append(text if cell["cell_type"] == "markdown" else f"```check\n{text}\n```")
    heads = re.compile(r"(?m)^(?:\*\*(?=\d+[.:] )|#{3,} +(?:Exercise +)?(?=\d+\b))")
    return heads.split("\n\n".join(parts))[1:]


def solutions(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The code of each exercise's folded solution, in order; an exercise without one is left out."""
    folded = (re.search(r"(?s)<details>.*?</details>", exercise) for exercise in exercises(cells))
    blocks = (re.findall(r"(?ms)^```(?:python|py)\s*\n(.*?)^```", fold[0]) for fold in folded if fold)
    return ["\n".join(found) for found in blocks if found]


def budget(metadata: Mapping[str, Any]) -> dict[str, float]:
    """What a lesson may take: the defaults, or its own ``metadata.roadmap``.

    Raises:
        ValueError: An unknown key, or a value that is not a positive number.
    """
    own = {key: value for key, value in metadata.get("roadmap", {}).items() if key not in OTHER_KEYS}
    for key, value in own.items():
        if key not in BUDGET:
            raise ValueError(f"metadata.roadmap has no key {key!r}; it knows {', '.join(BUDGET)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"metadata.roadmap.{key} is {value!r}; it must be a positive number")
    return BUDGET | own


# ---------------------------------------------------------------------------------------------------------- the checks


def check_title(lesson: Lesson) -> Iterator[str]:
    titles = [(i, text) for i, level, text in lesson.headings if level == 1]
    number = lesson.path.name[:2]
    first = source(lesson.cells[0]) if lesson.cells else ""
    if not re.match(r"# \d\d \S", first):
        yield "cell 0: does not begin with '# NN Title' (two digits, no dot)"
    elif first[2:4] != number:
        yield f"cell 0: the title says {first[2:4]}, the file says {number}"
    if len(titles) > 1:
        yield f"cell {titles[1][0]}: a second title; sections begin with ##"


def check_card(lesson: Lesson) -> Iterator[str]:
    first = source(lesson.cells[0]) if lesson.cells else ""
    for row, scales in CARD.items():
        lines = [line for line in first.splitlines() if row.lower() in line.lower()]
        if not lines:
            yield f"cell 0: the card has no row '{row}'"
        for scale in scales:
            if lines and not re.search(rf"(?i)\b{scale}\b", lines[0]):
                yield f"cell 0: the card's row '{row}' does not name the {scale} scale"


def check_sections(lesson: Lesson) -> Iterator[str]:
    sections = [text for _, level, text in lesson.headings if level == 2]
    for title in ENDING:
        if sections.count(title) != 1:
            yield f"{'no' if title not in sections else 'more than one'} section '## {title}'"
    if all(title in sections for title in ENDING) and sections[-len(ENDING) :] != ENDING:
        yield f"the last sections are {', '.join(sections[-len(ENDING) :])}; they must be {', '.join(ENDING)}"
    if sections and sections[0] in ENDING:
        yield "no section on the idea before the result"
    steps = [int(m[1]) for title in sections if (m := re.match(r"(\d+)[. :]", title))]
    if steps != list(range(1, len(steps) + 1)):
        yield f"the numbered sections are {steps}; they must count from 1"


def check_size(lesson: Lesson) -> Iterator[str]:
    cells = sum(not is_claim(cell) for cell in lesson.cells)
    if cells not in CELLS:
        yield f"{cells} cells; {CELLS.start}-{CELLS.stop - 1} are wanted"
    lines = sorted(sum(bool(line.strip()) for line in text.splitlines()) for _, _, text in lesson.code) or [0]
    found = {"median": statistics.median(lines), "90th percentile": lines[int(0.9 * (len(lines) - 1))], "longest": lines[-1]}
    for name, limit in LINES.items():
        if found[name] > limit:
            yield f"code cells are long: {name} {found[name]:g} lines, at most {limit}"
    prose = sum(words(text) for _, text in lesson.markdown)
    if prose not in WORDS:
        yield f"{prose} words of prose; {WORDS.start}-{WORDS.stop - 1} are wanted"
    code = sum(len(text.split()) for _, _, text in lesson.code)
    if prose < code:
        yield f"less prose than code: {prose} words against {code}"
    if lesson.size > NOTEBOOK_BYTES:
        yield f"{lesson.size:,} bytes; at most {NOTEBOOK_BYTES:,}"


# Lessons that have been brought to the rules of plain language; the others follow.
PLAIN = (
    "02-NLP_tasks/05-multiple_choice",
    "02-NLP_tasks/11-summarization_t5",
    "02-NLP_tasks/13-chatbot",
    "03-PEFT/05-lora",
    "04-Kbit_Training/04-nf4_and_qlora",
    "06-Multimodal-LLM/01-clip_from_scratch",
    "06-Multimodal-LLM/02-build_llava",
)
SENTENCE_WORDS = 30
BANNED = {  # an image or a mannerism, and what to write
    r"\bforet(?:ell|old)s?\b": "predict",
    r"\bdear(?:er|ly)\b": "more expensive",
    r"\bone-eyed\b": "say what is missing",
    r"\bhalf as (?:many|much) (?:\w+ )?again\b": "1.5 times",
    r"\ba third as (?:many|much)\b": "a ratio: 0.33 times",
    r"\bhas a sting\b": "say what goes wrong",
    r"\bthrows? (?:the )?dice\b": "draws random numbers",
    r"\bground under (?:his|her|their|its) feet\b": "say what is meant",
    r"\bhonestly read\b|\bto be honest\b": "leave it out",
    r"\ba gift\b": "say what is useful about it",
    r"\bsilly\b|\bnaughty\b": "say what is wrong",
    r"\bfor ever\b": "always",
}
STANDARD = {  # a term of our own, and that of the field
    r"\bright pairs?\b": "positive pair",
    r"\bwrong pairs?\b": "negative pair",
    r"\bbits an? (?:character|token)\b": "bits per character, bits per token",
    r"\bnats an? token\b": "nats per token",
    r"\btokens a second\b": "tokens per second",
    r"\bthe catch-all\b": "**kwargs",
    r"\bpart of the (?:texts|rows|tokens) that\b": "share, proportion",
}


def plain_language(markdown: str) -> Iterator[str]:
    """What can be checked of plain English: long sentences, images, and terms that are not the field's.

    Code, formulas, tables, links' addresses and folded solutions are not read.
    """
    text = re.sub(r"(?ms)^\s*(```|~~~).*?^\s*\1\s*$|<details>.*?</details>|\$\$.*?\$\$", " ", markdown)
    text = re.sub(r"(?m)^\s*\|.*$|^#.*$", " ", text)
    text = re.sub(r"`[^`\n]*`|\$[^$\n]+\$", "x", text)  # one word each
    text = re.sub(r"\]\([^)]*\)|https?://\S+", " ", text)
    for found, instead in (*BANNED.items(), *STANDARD.items()):
        for match in re.finditer(found, text, re.I):
            yield f"{match[0]!r}: write {instead}"
    text = re.sub(r"(?m)^\s*(?:[-*]|\d+\.)\s+", "\n\n", text)
    for sentence in re.split(r"(?<=[.!?:;])[\s*_)\"]+|\n\s*\n", text):
        count = len(re.findall(r"[A-Za-z0-9][\w'’-]*", sentence))
        if count > SENTENCE_WORDS:
            start = " ".join(sentence.split()[:6])
            yield f"a sentence of {count} words; at most {SENTENCE_WORDS}: '{start} ...'"


def spoken(source: str) -> Iterator[tuple[int, str]]:
    """What a module says to people: its docstrings and the sentences of its RoadmapErrors, each with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RoadmapError":
            for said in node.args:
                parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)


def check_language(lesson: Lesson) -> Iterator[str]:
    if not any(f"{name}" in lesson.path.as_posix() for name in PLAIN):
        return
    for i, text in lesson.markdown:
        for finding in plain_language(text):
            yield f"cell {i}: {finding}"


def check_rhythm(lesson: Lesson) -> Iterator[str]:
    kinds = ["claim" if is_claim(cell) else cell["cell_type"] for cell in lesson.cells]
    for i in range(len(kinds) - 2):
        if kinds[i : i + 3] == ["code"] * 3 and (i == 0 or kinds[i - 1] != "code"):
            yield f"cell {i}: three code cells in a row without a sentence between them"


def check_asserts(lesson: Lesson) -> Iterator[str]:
    real = 0
    for i, tree in lesson.trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                depends = any(isinstance(part, (ast.Name, ast.Call, ast.Attribute)) for part in ast.walk(node.test))
                if depends and not isinstance(node.test, ast.Tuple):
                    real += 1
                else:
                    yield f"cell {i}: an assert that cannot fail or cannot pass"
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                real += name.startswith("assert_")
    if real < ASSERTS:
        yield f"{real} asserts; at least {ASSERTS} are wanted"


def check_report(lesson: Lesson) -> Iterator[str]:
    trees, result = dict(lesson.trees), lesson.section("Result")
    in_result = [i for i, _, _ in lesson.code if i in result]
    found = [call for i in in_result[-1:] if i in trees for call in calls(trees[i], "report")]
    if not found:
        yield "the last code cell of '## Result' does not call report(...)"
    for call in found:
        name = call.args[0] if call.args else None
        folder = lesson.path.parent
        own = [f"{folder.name}/{lesson.path.stem}", f"{folder.parent.name}/{folder.name}"]  # the second: a lesson in a folder
        if isinstance(name, ast.Constant) and name.value not in own:
            yield f"report() names the lesson {name.value!r}; this is {own[0]!r}"


def check_picture(lesson: Lesson) -> Iterator[str]:
    drawn = any(key.startswith("image/") for _, cell, _ in lesson.code for out in outputs(cell) for key in out.get("data", {}))
    shown = any(re.search(r"!\[[^\]]*\]\(|<img\b|^```mermaid", text, re.M) for _, text in lesson.markdown)
    if not drawn and not shown:
        yield "no picture"


def outputs(cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(cell.get("outputs", []))


def check_outputs(lesson: Lesson) -> Iterator[str]:
    for expected, (i, cell, text) in enumerate(lesson.code, 1):
        if not text.strip():
            yield f"cell {i}: an empty code cell"
        if cell.get("execution_count") != expected:
            yield f"cell {i}: execution count {cell.get('execution_count')}, expected {expected} (one run, top to bottom)"
        if "execution" in cell.get("metadata", {}):
            yield f"cell {i}: stored timestamps (metadata.execution) change with every run"
        errors = [out for out in outputs(cell) if out["output_type"] == "error"]
        wanted = {"raises-exception", "nbval-raises-exception"} & set(tags(cell))
        if errors and not wanted:
            yield f"cell {i}: a stored error without the tag raises-exception: {errors[0].get('ename')}"
        if wanted and not errors and cell.get("execution_count"):
            yield f"cell {i}: tagged raises-exception but its stored output has no error"
        if "nbval-skip" in tags(cell) or re.search(r"(?m)^\s*#\s*NBVAL_SKIP\s*$", text):
            yield f"cell {i}: a skipped cell; every cell is run"
        if sum(len(text_of(out)) for out in outputs(cell)) > OUTPUT_CHARACTERS:
            yield f"cell {i}: an output of over {OUTPUT_CHARACTERS:,} characters"
        for out in outputs(cell):
            if out.get("name") == "stderr" and text_of(out).strip():
                yield f"cell {i}: stored stderr: {text_of(out).strip()[:60]!r}"
            if any("jupyter.widget" in key for key in out.get("data", {})):
                yield f"cell {i}: a widget output"
    if "widgets" in lesson.notebook.get("metadata", {}):
        yield "stored widget state (metadata.widgets)"


def check_text(lesson: Lesson) -> Iterator[str]:
    """Paths, secrets and leftovers, in code, prose and outputs alike."""
    for i, cell in enumerate(lesson.cells):
        text = source(cell)
        shown = "\n".join([text, *map(text_of, outputs(cell))])
        if match := SECRET.search(shown):
            yield f"cell {i}: looks like a secret: {match[1]}…"
        if match := ABSOLUTE_PATH.search(shown):
            yield f"cell {i}: an absolute path: {match[1]}"
        if match := LEFTOVER.search(text):
            yield f"cell {i}: a leftover {match[1]}"
        for pattern, name in WORKSHOP.items():
            if match := re.search(pattern, shown, re.I):
                yield f"cell {i}: {name}: {match[0]!r}"


def check_code(lesson: Lesson) -> Iterator[str]:
    """What no code of a lesson may hold, whether in a cell or in a folded solution."""
    cells = [(f"cell {i}", text) for i, _, text in lesson.code]
    for where, text in cells + [(f"solution {i}", text) for i, text in enumerate(solutions(lesson.cells), 1)]:
        if SHELL_INSTALL.search(text):
            yield f"{where}: an install command"
        if WIDGET_BARS.search(text):
            yield f"{where}: tqdm.auto stores widgets; use common.progress"
        tree = parse(text)
        if tree is None:
            yield f"{where}: does not parse"
            continue
        yield from (f"{where}: {finding}" for finding in code_findings(tree))
        yield from (f"{where}: commented-out code: {line!r}" for line in commented_out(text))


def code_findings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=False)):
                pass
            case ast.keyword(arg="trust_remote_code"):
                yield "trust_remote_code=True"
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                yield "weights_only=False"
            case ast.ExceptHandler(type=None):
                yield "a bare except"
            case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException"), body=[ast.Pass()]):
                yield "an exception swallowed"
            case ast.Constant(value="ROADMAP_SCALE"):
                yield "branches on ROADMAP_SCALE; use pick(tiny=, full=)"
            case ast.ImportFrom(module="common" | "common.scale", names=names) if any(n.name == "scale" for n in names):
                yield "branches on scale(); use pick(tiny=, full=)"
            case ast.ImportFrom(module="pickle") | ast.Import(names=[ast.alias(name="pickle")]):
                yield "pickle; use safetensors or JSON"


def commented_out(code: str) -> Iterator[str]:
    """Whole-line comments that are statements; a comment after code may well be a formula."""
    if "#" not in code:
        return
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(without_magics(code)).readline))
    except (tokenize.TokenError, IndentationError):
        return
    for token in tokens:
        text = token.string.lstrip("#").strip()
        if token.type != tokenize.COMMENT or token.line.strip() != token.string.strip():
            continue
        tree = parse(text if not re.match(r"(?:for|if|while|with|def|class|try|elif|else)\b.*:$", text) else f"{text} pass")
        for node in tree.body if tree else []:
            plain = (ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.Return, ast.Assert, ast.Delete, ast.For, ast.If)
            call = isinstance(node, ast.Expr) and re.match(r"(?:await )?[\w.]+\(.*\)$", text)  # not "shape (batch, time)"
            if isinstance(node, (*plain, ast.While, ast.With, ast.FunctionDef, ast.ClassDef)) or call:
                yield text


def check_links(lesson: Lesson) -> Iterator[str]:
    for i, text in lesson.markdown:
        for target in links(text):
            if not re.match(r"[a-z]+:|#|//", target) and not (lesson.path.parent / target.partition("#")[0]).exists():
                yield f"cell {i}: a dead link: {target}"
    last = source(lesson.cells[-1]) if lesson.cells else ""
    before, after = neighbours(lesson.path)
    for which, name in (("previous", before), ("next", after)):
        if name and not any(target.partition("/")[0].partition("#")[0] == name for target in links(last)):
            yield f"the last cell does not link to the {which} lesson, {name}"


def links(markdown: str) -> list[str]:
    """The targets of links and images, outside code."""
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|\b(?:href|src)=\"([^\"]+)\"", without_code(markdown))
    return [unquote(a or b) for a, b in found]


def lessons_in(folder: Path) -> list[str]:
    """The names of a folder's lessons in reading order: notebooks, and programs in folders of their own."""
    notebooks = {p.name for p in folder.glob("[0-9][0-9]-*.ipynb")}
    numbers = {name[:2] for name in notebooks}
    programs = {p.name for p in folder.glob("[0-9][0-9]-*/") if p.is_dir() and p.name[:2] not in numbers}
    return sorted(notebooks | programs)


def neighbours(path: Path) -> tuple[str, str]:
    """The names of the lessons before and after this one in its folder; empty at the ends."""
    names = lessons_in(path.parent)
    if path.name not in names:
        return "", ""
    at = names.index(path.name)
    return names[at - 1] if at else "", names[at + 1] if at + 1 < len(names) else ""


def check_exercises(lesson: Lesson) -> Iterator[str]:
    found = exercises(lesson.cells)
    if len(found) not in EXERCISES:
        yield f"{len(found)} exercises; {EXERCISES.start}-{EXERCISES.stop - 1} are wanted (each begins with **1. Name**)"
    for i, text in enumerate(found, 1):
        head = text.partition("<details>")[0]
        if not re.search(r"\d+ min", head):
            yield f"exercise {i}: no minutes"
        if not re.search(r"(?i)\b(easy|medium|hard)\b", head):
            yield f"exercise {i}: no difficulty (easy, medium or hard)"
        if not re.search(r"(?i)\bcheck", head):
            yield f"exercise {i}: no check"
        if not (fold := re.search(r"(?s)<details>\s*<summary>.*?</summary>(.*?)</details>", text)):
            yield f"exercise {i}: no folded solution (<details><summary>Solution</summary> … </details>)"
        elif not re.search(r"(?m)^```(?:python|py)\s*$", fold[1]):
            yield f"exercise {i}: no ```python block in its solution"


def check_metadata(lesson: Lesson) -> Iterator[str]:
    metadata = lesson.notebook.get("metadata", {})
    if (kernel := metadata.get("kernelspec", {}).get("name")) != "python3":
        yield f"the kernel is {kernel!r}, expected 'python3'"
    if set(metadata.get("language_info", {})) - {"name"}:
        yield "language_info holds more than the name, which changes with every Python"
    try:
        own = budget(metadata)
    except ValueError as error:
        yield str(error)
    else:
        for key, ceiling in BUDGET_CEILING.items():
            if own[key] > ceiling:
                yield f"metadata.roadmap.{key} is {own[key]:g}; at most {ceiling:g} for any lesson"


CHECKS = [
    check_title,
    check_card,
    check_sections,
    check_size,
    check_language,
    check_rhythm,
    check_asserts,
    check_report,
    check_picture,
    check_outputs,
    check_text,
    check_code,
    check_links,
    check_exercises,
    check_metadata,
]


def lint(lesson: Lesson) -> list[str]:
    """All findings about one lesson by itself."""
    return [finding for check in CHECKS for finding in check(lesson)]


# ---------------------------------------------------------------------------------------------------------- across lessons


def repeated_code(lessons: Iterable[Lesson]) -> Iterator[tuple[Path, str]]:
    """The first block of :data:`REPEATED_LINES` lines that two lessons share, for each such pair of lessons."""
    blocks = [(lesson, dict(code_blocks(lesson))) for lesson in lessons]
    for (first, ours), (second, theirs) in combinations(blocks, 2):
        shared = [block for block in theirs if block in ours]
        if shared:
            block = shared[0]
            where = f"cell {theirs[block]}: the same {REPEATED_LINES} lines of code as {first.path.name} cell {ours[block]}"
            yield second.path, f"{where}, beginning {block[0]!r}"


def code_blocks(lesson: Lesson) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every run of :data:`REPEATED_LINES` lines within a cell, without blanks, comments and imports, and its cell."""
    for i, _, text in lesson.code:
        lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith(("#", "import ", "from "))]
        for start in range(len(lines) - REPEATED_LINES + 1):
            yield tuple(lines[start : start + REPEATED_LINES]), i


def chapter_findings(chapter: Path) -> Iterator[tuple[Path, str]]:
    """What a chapter's folder gets wrong: numbers used twice, lessons that its README does not list."""
    names = lessons_in(chapter)
    for first, second in pairwise(names):
        if first[:2] == second[:2]:
            yield chapter / second, f"the number {second[:2]} is also that of {first}"
    if not names:
        return
    readme = chapter / "README.md"
    if not readme.exists():
        yield readme, "missing: a chapter lists its lessons there"
        return
    rows = [line for line in readme.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("|")]
    listed = {target.partition("/")[0] for row in rows for target in links(row)}
    for name in names:
        if name not in listed:
            yield readme, f"its table has no row that links to {name}"


def find_lessons(root: Path) -> list[Path]:
    """Every lesson notebook under a repository's chapters, in reading order."""
    hidden = (p for p in root.glob(PATTERN) if not any(part.startswith(".") for part in p.relative_to(root).parts))
    return sorted(hidden)


def lint_files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Findings about lessons, each by itself, among each other, and against their chapter's README."""
    lessons = []
    for path in paths:
        try:
            lessons.append(Lesson.read(path))
        except (OSError, ValueError) as error:
            yield path, f"not a notebook: {error}"
    for lesson in lessons:
        yield from ((lesson.path, finding) for finding in lint(lesson))
    yield from repeated_code(lessons)
    for folder in dict.fromkeys(path.parent for path in paths):
        yield from chapter_findings(folder)


def main(arguments: Sequence[str]) -> int:
    paths = [Path(a) for a in arguments] or find_lessons(ROOT)
    if not paths:
        print(f"No lessons match {PATTERN}.", file=sys.stderr)
        return 2
    findings = list(lint_files([path.resolve() for path in paths]))
    for path, finding in findings:
        print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {finding}")
    print(f"{len(paths)} lessons, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
