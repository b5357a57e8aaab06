"""A small Hugging Face Hub on this machine, for rehearsing the lessons at full scale without a network.

:mod:`tests.hub.server` speaks the part of the Hub's protocol that huggingface_hub, transformers and datasets use.
:mod:`tests.hub.models` and :mod:`tests.hub.data` fill it, for every entry of the two registries, with small random models
of the real class and tokenizer kind, and with rows of the real schema. :func:`ready` builds all of it once.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from pathlib import Path

from common.paths import ROOT, home

HERE = Path(__file__).parent
DAY = 86_400  # seconds


def ready() -> Path:
    """The folder that the server serves, built if it is not there; about a minute.

    Its name changes with this code and with that of the data sets; folders of other versions are removed after a day.
    """
    sources = [*sorted(HERE.glob("*.py")), *sorted((ROOT / "common" / "data").rglob("*.py"))]
    code = b"".join(path.read_bytes() for path in sources)
    folder = home() / f"hub-{hashlib.sha256(code).hexdigest()[:12]}"
    if not folder.exists():
        from tests.hub import data, models

        part = Path(tempfile.mkdtemp(dir=home(), prefix="hub-part-"))
        models.build(part / "models")
        data.build(part / "datasets")
        try:
            part.rename(folder)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(part, ignore_errors=True)
        for old in home().glob("hub-*"):
            if old != folder and time.time() - old.stat().st_mtime > DAY:  # a younger one may serve another checkout
                shutil.rmtree(old, ignore_errors=True)
    return folder
