"""The code fits the installed libraries, and the declared version ranges fit both."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.drift import check, sources
from tests.lint import ROOT


@pytest.mark.parametrize("path", sources(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_keyword_exists(path: Path):
    findings = check(path)
    assert not findings, "\n".join(["", *findings])


def range_findings(project: dict[str, Any]) -> Iterator[str]:
    """Requirements of a ``[project]`` table without an upper bound, or whose installed version is outside.

    An optional requirement that is not installed is not judged.
    """
    groups = {"": project.get("dependencies", []), **project.get("optional-dependencies", {})}
    for group, lines in groups.items():
        for requirement in map(Requirement, lines):
            if canonicalize_name(requirement.name) == canonicalize_name(project["name"]):
                continue  # an extra that includes another one
            if not any(part.operator in ("<", "<=", "==", "~=") for part in requirement.specifier):
                yield f"{requirement} has no upper bound"
            try:
                found = version(requirement.name)
            except PackageNotFoundError:
                if not group:
                    yield f"{requirement} is not installed"
                continue
            if not requirement.specifier.contains(found, prereleases=True):
                yield f"{requirement} does not allow the installed {found}"


def project_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_ranges():
    assert list(range_findings(project_table())) == []


def test_version_ranges_that_are_wrong():
    project = {
        "name": "some-project",
        "dependencies": ["pytest", "numpy>=1,<2", "torch>=2,<3", "surely-not-installed<2"],
        "optional-dependencies": {"more": ["also-not-installed>=1", "some_project[other]", "nbval==0.11.0"]},
    }
    expected = [
        "pytest has no upper",
        "numpy<2,>=1 does not allow",
        "surely-not-installed<2 is not",
        "also-not-installed>=1 has no",
    ]
    found = list(range_findings(project))
    assert len(found) == len(expected)
    assert all(finding.startswith(start) for finding, start in zip(found, expected, strict=True)), found


def test_the_tested_set_is_inside_the_ranges():
    """constraints.txt pins what was tested; each pin lies within the range that pyproject.toml declares."""
    lines = re.findall(r"(?m)^([\w.-]+)==([^\s;#]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    pins = {canonicalize_name(name): pin for name, pin in lines}
    project = project_table()
    lines = project["dependencies"] + [line for group in project.get("optional-dependencies", {}).values() for line in group]
    declared = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    shared = declared.keys() & pins.keys()
    assert shared
    outside = [f"{declared[name]} but {pins[name]}" for name in shared if not declared[name].specifier.contains(pins[name], True)]
    assert outside == []
