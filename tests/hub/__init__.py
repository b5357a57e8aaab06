"""A small Hugging Face Hub on this machine, for rehearsing the lessons at full scale without a network.

:mod:`tests.hub.server` speaks the part of the Hub's protocol that huggingface_hub, transformers and datasets use.
:mod:`tests.hub.models` and :mod:`tests.hub.data` fill it, for every entry of the two registries, with small random models
of the real class and tokenizer kind, and with rows of the real schema. :func:`ready` builds all of it once.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from common.paths import home

HERE = Path(__file__).parent


def ready() -> Path:
    """The folder that the server serves, built if it is not there; about a minute. Its name changes with this code."""
    code = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    folder = home() / f"hub-{hashlib.sha256(code).hexdigest()[:12]}"
    if not folder.exists():
        from tests.hub import data, models

        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        models.build(part / "models")
        data.build(part / "datasets")
        part.rename(folder)
    return folder
