"""Vectors of candidates, computed once, saved, and searched: as a matrix, or with faiss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RoadmapError
from common.errors import unknown
from common.packages import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from matching import metrics, models
from matching.data import Batcher
from matching.models import BiEncoder, Sbert

KINDS = ("matrix", "faiss")


class Index:
    """Texts with their vectors, and the matcher that made them.

    Args:
        folder: Of a saved matcher, which reads queries the way it has read the candidates.
        texts: The candidates.
        vectors: Shape (texts, width).
        kind: ``matrix`` works with every bi-encoder; ``faiss`` (``IndexFlatIP``) needs a score that is a dot product.
    """

    def __init__(self, folder: str | Path, texts: Sequence[str], vectors: torch.Tensor, kind: str = "matrix") -> None:
        if kind not in KINDS:
            raise unknown("kind of index", kind, KINDS)
        self.folder, self.texts, self.vectors, self.kind = Path(folder), list(texts), vectors, kind
        self.matcher, tokenizer = _bi_encoder(folder)
        self.batcher = Batcher(tokenizer, self.matcher.spec)
        if kind == "faiss" and isinstance(self.matcher, Sbert):
            raise RoadmapError("faiss looks for the largest dot product, which is not the score of sbert; use --kind matrix.")
        self._faiss: Any = None

    @classmethod
    def build(cls, folder: str | Path, texts: Sequence[str], kind: str = "matrix") -> Index:
        """Encode the candidates with a saved matcher.

        Raises:
            RoadmapError: No candidates, no such matcher, or one that cannot encode a text by itself.
        """
        if not texts:
            raise RoadmapError("There is no candidate to put into the index.")
        matcher, tokenizer = _bi_encoder(folder)
        return cls(folder, texts, metrics.encode(matcher, Batcher(tokenizer, matcher.spec), texts), kind)

    def save(self, folder: str | Path) -> None:
        """Write texts and settings as JSON and the vectors as safetensors, or as a faiss file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"model": str(self.folder.resolve()), "weights": _weights(self.folder), "kind": self.kind, "texts": self.texts}
        (folder / "index.json").write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if self.kind == "faiss":
            import faiss

            faiss.write_index(self._flat(), str(folder / "vectors.faiss"))
        else:
            save_file({"vectors": self.vectors.contiguous()}, folder / "vectors.safetensors")

    @classmethod
    def load(cls, folder: str | Path, model: str | Path | None = None) -> Index:
        """A saved index.

        Args:
            folder: Where it is.
            model: Where its matcher is now, if it was moved.

        Raises:
            RoadmapError: No index there; no matcher, or another one than has made the vectors.
        """
        path = Path(folder) / "index.json"
        if not path.is_file():
            raise RoadmapError(
                f"{folder} holds no index (no index.json in it); make one with: python index.py build MODEL TEXTS {folder}"
            )
        about = json.loads(path.read_text(encoding="utf-8"))
        model = Path(model or about["model"])
        if not (model / "matcher.json").is_file():
            raise RoadmapError(f"The matcher of this index is not in {model}; say where it is with --model.")
        if _weights(model) != about["weights"]:
            raise RoadmapError(f"The matcher in {model} is not the one that made this index; build the index again.")
        if about["kind"] == "faiss":
            import faiss

            flat = faiss.read_index(str(Path(folder) / "vectors.faiss"))
            vectors = torch.from_numpy(flat.reconstruct_n(0, flat.ntotal))
        else:
            vectors = load_file(Path(folder) / "vectors.safetensors")["vectors"]
        return cls(model, about["texts"], vectors, about["kind"])

    def search(self, queries: Sequence[str], k: int = 5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best candidates of each query.

        Args:
            queries: Texts.
            k: How many; fewer are returned if the index holds fewer.

        Returns:
            Scores and indices into ``texts``, best first, each of shape (queries, k).
        """
        k = min(k, len(self.texts))
        z = metrics.encode(self.matcher, self.batcher, queries)
        if self.kind == "faiss":
            scores, found = self._flat().search(z.numpy(), k)
            return scores, found
        best = metrics.compare(self.matcher, z, self.vectors).topk(k)
        return best.values.numpy(), best.indices.numpy()

    def _flat(self) -> Any:
        if self._faiss is None:
            import faiss

            self._faiss = faiss.IndexFlatIP(self.vectors.shape[1])
            self._faiss.add(self.vectors.numpy())
        return self._faiss


def _bi_encoder(folder: str | Path) -> tuple[BiEncoder, Any]:
    matcher, tokenizer = models.load(folder)
    if not isinstance(matcher, BiEncoder):
        raise RoadmapError(
            "A pointwise matcher has no vectors to keep: it reads each query with each candidate. Use another --arch."
        )
    return matcher, tokenizer


def _weights(folder: Path) -> str:
    return sha256(folder / "model.safetensors")
