#!/usr/bin/env python3
"""Check every keyword argument and every imported name in lessons and code against the installed libraries.

usage: python -m tests.drift [NOTEBOOK | SCRIPT ...]      (default: all lessons, their scripts, and common/)
exit status: 0 no findings, 1 findings.

Nothing is executed: calls are found in the syntax tree, their target is looked up in the installed package, and the keywords
are compared with its signature. Three kinds of target are understood: imported names (``transformers.Trainer``), attributes
of imported modules (``F.cross_entropy``), and methods of a variable whose class is evident (``trainer = Trainer(...)``).
A function that takes ``**kwargs`` accepts anything, except those in :data:`DEEPER`, whose further keywords are known.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.lint import ROOT, find_lessons, parse, solutions, source

# -------------------------------------------------------------------------------------------------- what libraries accept


def _parameters(path: str) -> set[str]:
    return set(inspect.signature(resolve(path)).parameters) - {"self", "args", "kwargs"}


def _generation_settings() -> set[str]:
    return set(vars(resolve("transformers.GenerationConfig")()))


# What a model of any kind may be handed through generate(), beside the settings
_MODEL_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds", "past_key_values"}
_MODEL_INPUTS |= {"pixel_values", "decoder_input_ids", "decoder_attention_mask", "encoder_outputs"}

# Functions that swallow **kwargs, and what those may hold; the library would silently ignore any other keyword
DEEPER: dict[str, Callable[[], set[str]]] = {
    "transformers.GenerationConfig": _generation_settings,
    "transformers.GenerationMixin.generate": lambda: _generation_settings() | _MODEL_INPUTS,
    "transformers.PreTrainedTokenizerBase.__call__": lambda: {"split_special_tokens"},
    "transformers.BitsAndBytesConfig": set,
    "common.training_arguments": lambda: _parameters("transformers.TrainingArguments"),
}
# Classes whose from_pretrained and from_config give an instance of another class
AUTO = {
    "transformers.AutoTokenizer": "transformers.PreTrainedTokenizerBase",
    "transformers.AutoConfig": "transformers.PreTrainedConfig",
    "transformers.AutoModel": "transformers.PreTrainedModel",  # and every AutoModelFor...
}
ELSEWHERE = {"transformers.PreTrainedModel.generate": "transformers.GenerationMixin.generate"}
CHAINING = {"to", "eval", "train", "requires_grad_"}  # methods that return the object itself


@cache
def resolve(path: str) -> Any:
    """The object that a dotted path names, importing submodules as needed.

    Raises:
        LookupError: If some part does not exist.
        ImportError: If its package is not installed.
    """
    parts = path.split(".")
    found: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        try:
            found = getattr(found, part)
        except AttributeError:
            if not isinstance(found, ModuleType):
                raise LookupError(f"{'.'.join(parts[: i - 1])} has no {part!r}") from None
            try:
                found = importlib.import_module(".".join(parts[:i]))
            except ModuleNotFoundError:
                raise LookupError(f"{'.'.join(parts[: i - 1])} has no {part!r}") from None
    return found


@cache
def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def accepted(target: Any) -> set[str] | None:
    """The keywords that a callable accepts; None if any, or if it does not tell (built in C)."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = [more for path, more in DEEPER.items() if not missing(path) and resolve(path) is target]
        return names | known[0]() if known else None
    return names


def missing(path: str) -> str:
    """What part of a path an installed package does not have; empty if all is there, or if the package is absent."""
    if not installed(path.partition(".")[0]):
        return ""  # an optional extra, or a script beside the lesson
    try:
        resolve(path)
    except LookupError as error:
        return str(error)
    except ImportError:
        return ""  # installed, but needs something that is not
    return ""


# -------------------------------------------------------------------------------------------------- what the code says

_SPAN = 100_000  # line numbers of the next cell begin here, so that all cells of a notebook make one module


@dataclass
class Source:
    """A notebook or a script as one syntax tree."""

    name: str
    labels: list[str]
    tree: ast.Module
    imported: dict[str, str] = field(default_factory=dict)  # local name -> dotted path

    def where(self, node: ast.AST) -> str:
        part, line = divmod(node.lineno, _SPAN)  # type: ignore[attr-defined]
        return f"{self.name} {self.labels[part]} {line}"


def read(path: Path) -> Source:
    """Parse a notebook (its cells and folded solutions) or a Python file; what does not parse is the lint's finding."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return Source(name, ["line"], ast.parse(text))
    cells = json.loads(text)["cells"]
    pieces = [(f"cell {i} line", source(cell)) for i, cell in enumerate(cells) if cell["cell_type"] == "code"]
    pieces += [(f"solution {i} line", code) for i, code in enumerate(solutions(cells), 1)]
    whole = Source(name, [label for label, _ in pieces], ast.Module([], []))
    for part, (_, code) in enumerate(pieces):
        if tree := parse(code):
            whole.tree.body += ast.increment_lineno(tree, part * _SPAN).body  # type: ignore[attr-defined]
    return whole


def check(path: Path) -> list[str]:
    """All findings in one file, each a line that says where and what."""
    code = read(path)
    findings = [*_imports(code), *_scope(code, code.tree.body, {})]
    return list(dict.fromkeys(findings))


def _imports(code: Source) -> Iterator[str]:
    """Fill ``code.imported``; a name that an installed package does not export is a finding."""
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Import):
            new = {alias.asname or alias.name.partition(".")[0]: (alias.asname, alias.name) for alias in node.names}
            code.imported |= {local: name if asname else local for local, (asname, name) in new.items()}
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            code.imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            paths = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*"]
        else:
            continue
        yield from (f"{code.where(node)}: {problem}" for path in paths if (problem := missing(path)))


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _scope(code: Source, body: Sequence[ast.AST], outer: dict[str, str]) -> Iterator[str]:
    """Findings in one scope and, recursively, in its functions; ``outer`` is as :func:`_variables` gives."""
    own, functions = [], []
    waiting = list(reversed(body))
    while waiting:  # in source order, without entering functions
        node = waiting.pop()
        own.append(node)
        if isinstance(node, _FUNCTIONS):
            functions.append(node)
            waiting += [*getattr(node, "decorator_list", []), *node.args.defaults]
        else:
            waiting += reversed(list(ast.iter_child_nodes(node)))
    variables = _variables(code, own, outer)
    for node in own:
        if isinstance(node, ast.Call):
            yield from _call(code, node, variables)
    for function in functions:
        unknown = {argument.arg: "" for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
        inner = function.body if isinstance(function.body, list) else [function.body]
        yield from _scope(code, inner, variables | unknown)


def _variables(code: Source, own: Sequence[ast.AST], outer: dict[str, str]) -> dict[str, str]:
    """The variables with the class of which they are always an instance, or with an empty text if that is not evident."""
    values = {id(node.targets[0]): node.value for node in own if isinstance(node, ast.Assign) and len(node.targets) == 1}
    bound: dict[str, set[str]] = {}
    known = dict(outer)
    for node in own:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            of = _class_of(code, values[id(node)], known) if id(node) in values else ""
            bound.setdefault(node.id, set()).add(of)
            known[node.id] = of
    evident = {name: classes.pop() for name, classes in bound.items() if len(classes) == 1}
    return outer | dict.fromkeys(bound, "") | evident


def _class_of(code: Source, node: ast.AST, variables: dict[str, str]) -> str:
    """The dotted path of an expression's class; empty if it is not evident."""
    if isinstance(node, ast.Name):
        return variables.get(node.id, "")
    if isinstance(node, ast.Subscript):
        return "datasets.Dataset" if _class_of(code, node.value, variables).endswith(".DatasetDict") else ""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute) and node.func.attr in CHAINING:
        return _class_of(code, node.func.value, variables)
    path = _target(code, node.func, variables)
    owner, _, method = path.rpartition(".")
    if method in ("from_pretrained", "from_config"):
        return AUTO["transformers.AutoModel"] if owner.startswith("transformers.AutoModel") else AUTO.get(owner, owner)
    if not path or not installed(path.partition(".")[0]) or missing(path):
        return ""
    target = resolve(path)
    if isinstance(target, type):
        return path
    try:
        result = typing.get_type_hints(target).get("return")
    except Exception:  # an annotation that cannot be evaluated tells us nothing
        return ""
    return f"{result.__module__}.{result.__qualname__}" if isinstance(result, type) else ""


def _target(code: Source, func: ast.AST, variables: dict[str, str]) -> str:
    """The dotted path of what is called; empty if unknown."""
    if isinstance(func, ast.Name):
        if func.id in variables:
            return f"{variables[func.id]}.__call__" if variables[func.id] else ""
        return code.imported.get(func.id, "")
    if isinstance(func, ast.Attribute):
        if instance := _class_of(code, func.value, variables):
            return ELSEWHERE.get(f"{instance}.{func.attr}", f"{instance}.{func.attr}")
        if isinstance(func.value, (ast.Name, ast.Attribute)) and (owner := _target(code, func.value, variables)):
            return f"{owner}.{func.attr}"
    return ""


def _call(code: Source, node: ast.Call, variables: dict[str, str]) -> Iterator[str]:
    keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
    path = _target(code, node.func, variables)
    if not path or not installed(path.partition(".")[0]):
        return
    try:
        target = resolve(path)
    except LookupError as error:
        owner = path.rpartition(".")[0]
        if not missing(owner) and isinstance(
            resolve(owner), ModuleType
        ):  # an instance may have attributes that its class has not
            yield f"{code.where(node)}: {error}"
        return
    except ImportError:
        return
    if keywords and (names := accepted(target)) is not None:
        for keyword in keywords:
            if keyword not in names:
                yield f"{code.where(node)}: {path}() has no keyword {keyword!r}"


# -------------------------------------------------------------------------------------------------- files


def sources(root: Path) -> list[Path]:
    """The lessons, the scripts in the chapters, and ``common``."""
    scripts = [p for p in sorted(root.glob("0*-*/**/*.py")) if not any(part.startswith(".") for part in p.parts)]
    return [*find_lessons(root), *scripts, *sorted((root / "common").rglob("*.py"))]


def main(arguments: Sequence[str]) -> int:
    findings = [finding for path in [Path(a).resolve() for a in arguments] or sources(ROOT) for finding in check(path)]
    print(*findings, sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
