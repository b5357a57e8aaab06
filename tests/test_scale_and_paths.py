"""The switch, the environment it sets, and the folders."""

import os
import subprocess
import sys

from common import errors, paths
from common.errors import RoadmapError
from common.scale import pick, prepare_environment, progress, quiet, scale

import pytest


def test_pick_follows_the_switch(monkeypatch):
    monkeypatch.delenv("ROADMAP_SCALE", raising=False)
    assert scale() == "tiny" and pick(tiny=1, full=2) == 1
    monkeypatch.setenv("ROADMAP_SCALE", " Full ")
    assert scale() == "full" and pick(tiny=1, full=2) == 2
    monkeypatch.setenv("ROADMAP_SCALE", "huge")
    with pytest.raises(errors.RoadmapError, match="'tiny' \\(default\\) or 'full'"):
        pick(tiny=1, full=2)


def test_tiny_is_offline_and_full_is_not(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROADMAP_SCALE", "full")
    prepare_environment()
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("ROADMAP_SCALE", "tiny")
    prepare_environment()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_what_the_reader_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_importing_common_is_light():
    """`python -m common list` must not wait for torch."""
    code = "import sys, common; common.pick; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); dir(common)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_lazy_names_exist_and_unknown_ones_say_so():
    import common

    assert all(getattr(common, name) is not None for name in common.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = common.nothing


def test_progress_is_silent_when_asked(monkeypatch, capsys):
    monkeypatch.setenv("ROADMAP_QUIET", "1")
    assert quiet() and list(progress([1, 2], label="x")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ROADMAP_QUIET", "0")
    assert not quiet() and list(progress([1, 2], label="x")) == [1, 2]
    assert "x" in capsys.readouterr().err


def test_home_is_made_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADMAP_HOME", str(tmp_path / "a" / "b"))
    assert paths.home() == tmp_path / "a" / "b" and paths.home().is_dir()
    monkeypatch.delenv("ROADMAP_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.home() == tmp_path / "llm-roadmap"


def test_home_that_cannot_be_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROADMAP_HOME", str(tmp_path / "file" / "inside"))
    with pytest.raises(errors.RoadmapError, match="set ROADMAP_HOME"):
        paths.home()
    monkeypatch.setenv("ROADMAP_HOME", str(tmp_path))
    monkeypatch.setattr(paths.os, "access", lambda *_: False)
    with pytest.raises(errors.RoadmapError, match="cannot be written"):
        paths.home()


def test_outputs(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADMAP_OUTPUTS", str(tmp_path))
    assert paths.outputs("01-x/02-y").is_dir() and paths.outputs("01-x/02-y") == tmp_path / "01-x" / "02-y"


def test_unknown_lists_what_there_is():
    assert (
        str(errors.unknown("data set", "x", ["b", "a"], "help"))
        == "There is no data set named 'x'; choose one of: a, b. See: help"
    )


def test_a_rehearsal_is_limited_and_says_so_once(monkeypatch, capsys):
    from common import scale as module

    monkeypatch.setattr(module, "_said", set())
    monkeypatch.delenv("ROADMAP_MAX_STEPS", raising=False)
    assert module.cap("steps") is None and capsys.readouterr().out == ""
    monkeypatch.setenv("ROADMAP_MAX_STEPS", "3")
    assert module.cap("steps") == module.cap("steps") == 3
    assert capsys.readouterr().out.count("ROADMAP_MAX_STEPS=3") == 1
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("ROADMAP_MAX_ROWS", wrong)
        with pytest.raises(RoadmapError, match="ROADMAP_MAX_ROWS is .* whole number above 0"):
            module.cap("rows")
