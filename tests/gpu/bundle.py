"""``python -m tests.gpu.bundle``: one archive of at most 60 MiB that runs the rows on a bare machine without network.

The machine needs Linux on x86-64 with Python 3.12, torch 2.11 (CUDA 13) and transformers 5.17 or newer. In the archive: the
code, the data that the rows read, the small models of the local Hub, and the wheels that such a machine lacks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from common.course.lessons import resolve
from common.errors import RoadmapError
from common.paths import ROOT, outputs

import numpy as np

from tests.rehearse import SAMPLE

LIMIT = 60 * 2**20
DATA = Path(__file__).parent / "data"
WHEELS = [  # most needed first; each with nothing that it depends on
    *("accelerate", "datasets", "peft", "evaluate", "liger-kernel", "bitsandbytes"),
    *("dill", "multiprocess", "xxhash", "sentencepiece", "nbclient", "nbformat", "ipykernel"),
]
CUDA = "130"  # the one CUDA library that bitsandbytes keeps
README = """Unpack, then: pip install --no-index --no-deps wheels/*.whl
Then: python -m tests.gpu --minutes 8 --out gpu.json   (--toy checks the code without measuring)
Keep gpu.json as assets/results/gpu/NAME.json of the course; `make results` makes the table.
"""


def main() -> int:
    """Make the archive and say where it is."""
    try:
        archive = make(outputs("gpu-bundle"))
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB. Its README.txt has three lines: how it is used.")
    return 0


def make(folder: Path, wheels: bool = True) -> Path:
    """Gather everything and pack it.

    Args:
        folder: Where the archive goes.
        wheels: Whether to fetch wheels; a test does not.

    Raises:
        RoadmapError: If a wheel cannot be had, or the archive is larger than 60 MiB.
    """
    data()
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "gpu-bundle.tar.gz"
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary) / "gpu-bundle"
        for name in ("common", "tests", "assets/metrics", "assets/fonts", "pyproject.toml", "constraints.txt"):
            copy(ROOT / name, top / name)
        for lesson in (lesson for name in SAMPLE for lesson in resolve(name)):
            source = lesson.path if lesson.path.parent.parent == ROOT else lesson.path.parent
            copy(source, top / source.relative_to(ROOT))
        (top / "README.txt").write_text(README, encoding="utf-8")
        if wheels:
            fetch(top / "wheels")
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(top, arcname="gpu-bundle")
    if archive.stat().st_size > LIMIT:
        raise RoadmapError(f"{archive} has {archive.stat().st_size / 2**20:.1f} MiB, more than 60: leave out the last of WHEELS.")
    return archive


def data() -> None:
    """Write what the rows read and the repository does not hold: blocks of the corpus, and the decoder's tokenizer."""
    if (DATA / "blocks.npy").exists():
        return
    from common.data import load_data
    from common.models import MODELS_DIR
    from common.text import pack_blocks

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS_DIR / "tiny-qwen-zh")
    DATA.mkdir(exist_ok=True)
    tokenizer.save_pretrained(DATA / "tokenizer")
    corpus = load_data("corpus")
    texts = [*corpus["validation"]["text"][:4_000], *corpus["train"]["text"][:]]  # the row holds out the first 256 blocks
    blocks = pack_blocks(tokenizer, texts, 128, tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    np.save(DATA / "part.npy", np.array(blocks, dtype=np.uint16))
    (DATA / "part.npy").rename(DATA / "blocks.npy")


def copy(source: Path, target: Path) -> None:
    """A file or a folder, without what runs have written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints", "outputs"))
    else:
        shutil.copy(source, target)


def fetch(folder: Path) -> None:
    """Wheels for Python 3.12 on Linux, at the tested versions; bitsandbytes with one CUDA library."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", "3.12"]
    command += [f"--platform={tag}" for tag in ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    for name in WHEELS:
        wanted = f"{name}=={tested[name]}" if name in tested else name
        done = subprocess.run([*command, wanted], capture_output=True, text=True)
        if done.returncode:
            raise RoadmapError(f"The wheel of {wanted} could not be fetched: {done.stderr.strip().splitlines()[0][:200]}")
    for wheel in folder.glob("bitsandbytes-*.whl"):
        slim(wheel)


def slim(wheel: Path) -> None:
    """Take the libraries for other versions of CUDA out of a wheel, and out of its list of files."""
    part = wheel.with_suffix(".part")

    def kept(name: str) -> bool:
        library = name.rpartition("/")[2]
        return not library.startswith("libbitsandbytes_") or f"cuda{CUDA}" in library or "cpu" in library

    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if not kept(entry.filename):
                continue
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines()
                content = ("\n".join(line for line in lines if kept(line.split(",")[0])) + "\n").encode()
            new.writestr(entry, content)
    part.replace(wheel)


if __name__ == "__main__":
    sys.exit(main())
