"""The package is laid out as CONTRIBUTING.md says: rooms, the order of modules, functions that fit on a page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from common.paths import ROOT

import pytest

PACKAGE = ROOT / "common"
ROOMS = ["common", "common.recipes", "common.course"]
LONGEST = 60  # lines of a function's code, its signature and docstring aside


def order() -> dict[str, list[str]]:
    """The modules of each room, as the table in CONTRIBUTING.md lists them."""
    rows = re.findall(r"(?m)^\| `(common[\w/]*)/?` \| ([\w, ]+) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {room.strip("/").replace("/", "."): modules.split(", ") for room, modules in rows}


def place(module: str) -> tuple[int, int]:
    """Number of a module's room, and its number in that room; ``common.data.names`` counts as ``common.data``."""
    parts = module.split(".")
    room = ".".join(parts[:2]) if ".".join(parts[:2]) in ROOMS else "common"
    name = parts[len(room.split("."))] if len(parts) > len(room.split(".")) else "__init__"
    names = order()[room]
    return ROOMS.index(room), -1 if name in ("__init__", "__main__") else names.index(name)


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports anywhere, also inside functions; what is only for types does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "common":
            yield from (f"{node.module}.{alias.name}" if node.module in ROOMS else node.module for alias in node.names)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_the_map_lists_every_module_once():
    found = {room: set() for room in ROOMS}
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = ".".join(parts[:2]) if ".".join(parts[:2]) in ROOMS else "common"
        name = parts[len(room.split("."))] if len(parts) > len(room.split(".")) else "__init__"
        if name not in ("__init__", "__main__", "recipes", "course"):
            found[room].add(name)
    assert {room: sorted(names) for room, names in order().items()} == {room: sorted(names) for room, names in found.items()}


def test_no_module_imports_a_later_one():
    entrances = {"common.__init__", "common.__main__"}  # names load on first use there, and the command line starts there
    wrong = []
    for path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name in entrances:
            continue
        own = place(name.removesuffix(".__init__"))
        for target in imports(path):
            known = target if place_or_none(target) else target.rpartition(".")[0]
            if place(known) > own and not target.startswith(name.removesuffix(".__init__")):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def place_or_none(module: str) -> tuple[int, int] | None:
    try:
        return place(module)
    except ValueError:
        return None


def test_lessons_never_import_a_recipe():
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("0*-*/**/*") if path.suffix in (".ipynb", ".py")}
    assert len(texts) > 30
    assert [str(path) for path, text in texts.items() if "common.recipes" in text] == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_fit_on_a_page(path):
    long = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
            lines = node.body[-1].end_lineno - node.body[1].lineno + 1
        elif isinstance(node, ast.FunctionDef):
            lines = node.body[-1].end_lineno - node.body[0].lineno + 1
        else:
            continue
        if lines > LONGEST:
            long.append(f"{node.name}: {lines} lines")
    assert long == []
