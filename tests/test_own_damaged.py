"""Damaged copies of every example: rows or one sentence, never a traceback."""

import json
import random
from collections.abc import Iterator
from typing import Any

from common.data import load_data
from common.errors import RoadmapError

import pytest

from tests.formats import EXAMPLES
from tests.test_own_data import HERE

FILES = [(task, name, said) for task, files in EXAMPLES.items() for name, said in files]
CASES = [(task, name, said) for task, name, said in FILES if (HERE / name).suffix not in ("", ".parquet")]
VALUES = (None, 7, "文字", [], {}, 1.5, True, -(10**20))
BYTES = (b'"', b"\t", b"\n", b",", b"\r", b"\xff", b"\0", b" ")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def damaged(value: Any, rng: random.Random) -> Any:
    """One to three values replaced or taken away."""
    for _ in range(rng.randint(1, 3)):
        if not (known := list(places(value))):
            break
        *path, last = rng.choice(known)
        parent = value
        for key in path:
            parent = parent[key]
        if rng.random() < 0.2:
            del parent[last]
        else:
            parent[last] = rng.choice(VALUES)
    return value


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes put in or taken away."""
    for _ in range(rng.choice((1, 3, 10))):
        place = rng.randrange(len(data))
        data = data[:place] + rng.choice(BYTES) + data[place + rng.choice((0, 0, 1, 5)) :]
    return data


@pytest.mark.parametrize("task, name, said", CASES)
def test_a_damaged_file_gives_rows_or_one_sentence(task, name, said, tmp_path):
    rng, raw = random.Random(name), (HERE / name).read_bytes()
    options = dict(pair.split("=") for pair in [said] if pair)
    options = {key: False if value == "False" else value.strip('"') for key, value in options.items()}
    for number in range(12):
        path = tmp_path / f"{number}{(HERE / name).suffix}"
        lines = raw.decode("utf-8", "ignore").splitlines()
        if path.suffix in (".json", ".jsonl") and lines[0].startswith("{") and lines[0].endswith("}"):
            path.write_text(
                "\n".join(json.dumps(row) for row in damaged([json.loads(line) for line in lines], rng)), encoding="utf-8"
            )
        elif path.suffix == ".json":
            path.write_text(json.dumps(damaged(json.loads(raw), rng)), encoding="utf-8")
        else:
            path.write_bytes(damaged_bytes(raw, rng))
        for faults in ("stop", "drop"):
            try:
                load_data(task, file=path, faults=faults, **options)
            except RoadmapError as error:
                assert "\n" not in str(error)
