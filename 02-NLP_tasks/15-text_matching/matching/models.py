"""Five architectures over one encoder. What a batch holds is in :mod:`matching.data`.

==========  =======================================================  =========================================
name        score of a pair                                          candidates can be computed beforehand
==========  =======================================================  =========================================
pointwise   both texts read together, then a linear layer            no
dssm        cosine of two vectors, supervised                        yes
sbert       linear layer on u, v and abs(u - v)                      yes, but the comparison is no dot product
simcse      cosine; learns from unlabelled sentences by dropout      yes
esimcse     the same with word repetition and a queue of negatives   yes
==========  =======================================================  =========================================
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common import RoadmapError, from_scratch
from common.errors import unknown

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from matching import losses

ARCHITECTURES = ("pointwise", "dssm", "sbert", "simcse", "esimcse")
UNSUPERVISED = ("simcse", "esimcse")
LOSSES = ("infonce", "cosent", "contrastive", "cosine-mse")
POOLINGS = ("mean", "cls", "max")
PARTS = 4  # a batch is encoded in so many parts, by length
DROPOUTS = ("embedding_dropout", "attention_dropout", "mlp_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Spec:
    """Everything a matcher needs beside its weights; written to ``matcher.json``.

    Attributes:
        arch: One of :data:`ARCHITECTURES`.
        loss: One of :data:`LOSSES`; used by ``dssm`` only.
        pooling: How token vectors become one: ``mean`` or ``max`` over real tokens, or the first token (``cls``).
        max_length: Tokens a text is cut to, special tokens included; a pair read together gets twice as many.
        dropout: Probability in the encoder during training; None keeps what its configuration says.
        margin: Of the contrastive loss.
        temperature: Of InfoNCE and CoSENT.
        queue: How many earlier sentences ``esimcse`` keeps as negatives.
        momentum: How slowly the encoder that fills the queue follows, between 0 and 1.
        threshold: Score from which a pair counts as a match, chosen on the validation split; None before that.
    """

    arch: str
    loss: str = "infonce"
    pooling: str = "mean"
    max_length: int = 48
    dropout: float | None = None
    margin: float = 0.5
    temperature: float = 0.05
    queue: int = 160
    momentum: float = 0.995
    threshold: float | None = None


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """One vector a text; padding never counts.

    Args:
        hidden: Token vectors, shape (texts, tokens, width).
        mask: 1 on real tokens, shape (texts, tokens).
        how: ``mean``, ``max`` or ``cls``.

    Returns:
        Shape (texts, width).
    """
    if how == "cls":
        return hidden[:, 0]
    real = mask[..., None].bool()
    if how == "max":
        return hidden.masked_fill(~real, -torch.inf).amax(1)
    return hidden.masked_fill(~real, 0).sum(1) / real.sum(1)


def load_encoder(name: str, *, dropout: float | None, random: bool = False) -> PreTrainedModel:
    """An encoder in float32, with dropout set where the architecture has it.

    Args:
        name: A local folder or a Hub name.
        dropout: For every dropout in the configuration; None leaves them.
        random: The same architecture with random weights.

    Raises:
        RoadmapError: No such model, or a configuration without any dropout that could be set.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise RoadmapError(
            f"There is no model {name!r}: give a folder with config.json, or a Hub name at full scale "
            f"({str(error).splitlines()[0][:120]})."
        ) from error
    settings = {key: dropout for key in DROPOUTS if hasattr(config, key)} if dropout is not None else {}
    if dropout and not settings:
        raise RoadmapError(f"The configuration of {name} names none of {', '.join(DROPOUTS)}; its dropout cannot be set.")
    if random:
        return from_scratch(AutoModel, name, **settings)
    return AutoModel.from_pretrained(name, dtype=torch.float32, **settings)


class Matcher(torch.nn.Module):
    """An encoder with what turns two texts into a score; subclasses say how, and what to train on."""

    def __init__(self, spec: Spec, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.spec, self.encoder = spec, encoder

    def embed(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pooled vectors, shape (texts, width); token types only where two texts are read together and the encoder has them.

        Texts of like length go through the encoder together, so that short ones do not pay for the padding of long ones;
        the batch itself stays a random one.
        """
        lengths = attention_mask.sum(1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(max(8, math.ceil(len(order) / PARTS))):
            longest = int(lengths[rows].max())
            mask = attention_mask[rows, :longest]
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids[rows, :longest]}
            hidden = self.encoder(input_ids=input_ids[rows, :longest], attention_mask=mask, **types).last_hidden_state
            parts.append(pool(hidden, mask, self.spec.pooling))
        return torch.cat(parts)[order.argsort()]

    @property
    def head(self) -> torch.nn.Linear | None:
        """The layer beside the encoder that has to be saved, if there is one."""
        return getattr(self, "classifier", None)


class Pointwise(Matcher):
    """Reads both texts together, so that every token of one can look at every token of the other."""

    def __init__(self, spec: Spec, encoder: PreTrainedModel) -> None:
        super().__init__(spec, encoder)
        self.classifier = torch.nn.Linear(encoder.config.hidden_size, 2)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (pairs, 2) of texts joined by a separator, and the cross-entropy if there are labels."""
        logits = self.classifier(self.embed(input_ids, attention_mask, token_type_ids))
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class BiEncoder(Matcher):
    """Reads each text alone. Vectors of candidates can be computed once and kept."""

    def vectors(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What an index stores: unit vectors, shape (texts, width)."""
        return F.normalize(self.embed(input_ids, attention_mask), dim=-1)

    def compare(self, queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Score of each query vector with each candidate vector, shape (queries, candidates)."""
        return queries @ candidates.T


class Dssm(BiEncoder):
    """One encoder for both sides, cosine, and one of four losses."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        labels: torch.Tensor,
    ) -> SequenceClassifierOutput:
        """Loss over pairs of texts of the batch; ``left`` and ``right`` are their rows, shape (pairs,)."""
        z = self.vectors(input_ids, attention_mask)
        cosine = (z[left] * z[right]).sum(-1)
        match self.spec.loss:
            case "cosine-mse":
                loss = losses.cosine_mse(cosine, labels)
            case "contrastive":
                loss = losses.contrastive(cosine, labels, self.spec.margin)
            case "cosent":
                loss = losses.cosent(cosine, labels, self.spec.temperature)
            case _:
                loss = self._info_nce(z, left, right, labels)
        return SequenceClassifierOutput(loss=loss, logits=cosine)

    def _info_nce(self, z: torch.Tensor, left: torch.Tensor, right: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Each matching pair against all second texts of the batch, hard negatives included."""
        candidates, column = torch.unique(right, return_inverse=True)
        known = torch.zeros(len(z), len(candidates), dtype=torch.bool, device=z.device)
        known[left[labels == 1], column[labels == 1]] = True
        anchors, target = left[labels == 1], column[labels == 1]
        ignore = known[anchors] | (anchors[:, None] == candidates[None, :])  # other matches, and the text itself
        ignore[torch.arange(len(anchors)), target] = False
        if not len(anchors):  # a batch without a match teaches nothing
            return z.sum() * 0
        return losses.info_nce(z[anchors] @ z[candidates].T, target, ignore, self.spec.temperature)


class Sbert(BiEncoder):
    """Sentence-BERT's classifier: a linear layer sees both vectors and how far apart they are in each direction."""

    def __init__(self, spec: Spec, encoder: PreTrainedModel) -> None:
        super().__init__(spec, encoder)
        self.classifier = torch.nn.Linear(3 * encoder.config.hidden_size, 2)

    def vectors(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What an index stores: pooled vectors as they are, shape (texts, width)."""
        return self.embed(input_ids, attention_mask)

    def compare(self, queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Logit of "same" minus logit of "different", shape (queries, candidates)."""
        weight, bias = (part[1] - part[0] for part in (self.classifier.weight, self.classifier.bias))
        u, v, gap = weight.chunk(3)
        scores = (queries @ u)[:, None] + (candidates @ v)[None, :] + bias
        return torch.stack([row + (candidates - query).abs() @ gap for row, query in zip(scores, queries)])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        labels: torch.Tensor,
    ) -> SequenceClassifierOutput:
        """Cross-entropy over pairs of texts of the batch."""
        z = self.embed(input_ids, attention_mask)
        u, v = z[left], z[right]
        logits = self.classifier(torch.cat([u, v, (u - v).abs()], dim=-1))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


class SimCse(BiEncoder):
    """The same sentence twice through an encoder with dropout: two views of one meaning.

    Source: Gao, Yao, Chen (2021), SimCSE: Simple Contrastive Learning of Sentence Embeddings, arXiv:2104.08821.
    """

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Loss over sentences in two views: rows 0..n-1 and, in the same order, n..2n-1."""
        first, second = self.vectors(input_ids, attention_mask).chunk(2)
        return self._loss(first, second)

    def _loss(self, first: torch.Tensor, candidates: torch.Tensor) -> SequenceClassifierOutput:
        cosine = first @ candidates.T
        target = torch.arange(len(first), device=first.device)
        return SequenceClassifierOutput(loss=losses.info_nce(cosine, target, None, self.spec.temperature), logits=cosine)


class ESimCse(SimCse):
    """SimCSE with word repetition in the second view, and a queue of earlier sentences as further negatives.

    The queue is filled by a copy of the encoder that follows it slowly and runs without dropout.
    Source: Wu et al. (2022), ESimCSE, arXiv:2109.04380; He et al. (2020), Momentum Contrast, arXiv:1911.05722.
    """

    def __init__(self, spec: Spec, encoder: PreTrainedModel) -> None:
        super().__init__(spec, encoder)
        self.queue: torch.Tensor
        self.filled: torch.Tensor
        self.follower = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(spec.queue, encoder.config.hidden_size))
        self.register_buffer("filled", torch.tensor(0))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """As SimCSE; in training the queue then takes in the first views of this batch and drops its oldest."""
        first, second = self.vectors(input_ids, attention_mask).chunk(2)
        waiting = self.queue[: int(self.filled)].clone()  # not yet the sentences of this batch: they would be false negatives
        output = self._loss(first, torch.cat([second, waiting]))
        if self.training:
            self._follow()
            self._enqueue(input_ids[: len(first)], attention_mask[: len(first)])
        return output

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in zip(self.follower.parameters(), self.encoder.parameters()):
            slow.lerp_(fast, 1 - self.spec.momentum)

    @torch.no_grad()
    def _enqueue(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        self.follower.eval()  # no dropout
        hidden = self.follower(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        fresh = F.normalize(pool(hidden, attention_mask, self.spec.pooling), dim=-1)
        kept = torch.cat([fresh, self.queue[: int(self.filled)]])[: len(self.queue)]  # newest first
        self.queue[: len(kept)] = kept
        self.filled.fill_(len(kept))


_CLASSES: dict[str, type[Matcher]] = {
    "pointwise": Pointwise,
    "dssm": Dssm,
    "sbert": Sbert,
    "simcse": SimCse,
    "esimcse": ESimCse,
}


def build(spec: Spec, name: str, *, random: bool = False) -> tuple[Matcher, Any]:
    """A fresh matcher and its tokenizer.

    Args:
        spec: What to build.
        name: The encoder: a local folder or a Hub name.
        random: Random weights in place of pre-trained ones.

    Raises:
        RoadmapError: Unknown architecture, loss, pooling or model; SimCSE without dropout.
    """
    for kind, value, known in (
        ("architecture", spec.arch, ARCHITECTURES),
        ("loss", spec.loss, LOSSES),
        ("pooling", spec.pooling, POOLINGS),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    if spec.arch == "simcse" and not spec.dropout:
        raise RoadmapError("SimCSE needs dropout above 0: without it both views of a sentence are the same numbers.")
    encoder = load_encoder(name, dropout=spec.dropout, random=random)
    return _CLASSES[spec.arch](spec, encoder), AutoTokenizer.from_pretrained(name)


def save(matcher: Matcher, tokenizer: Any, folder: str | Path, spec: Spec) -> None:
    """Write encoder, head, tokenizer and ``matcher.json``; safetensors and JSON only.

    Args:
        matcher: What to save.
        tokenizer: Its tokenizer.
        folder: Made if it does not exist.
        spec: Of the matcher, with the threshold that was chosen.
    """
    folder = Path(folder)
    matcher.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if matcher.head is not None:
        save_file(matcher.head.state_dict(), folder / "head.safetensors")
    (folder / "matcher.json").write_text(json.dumps(asdict(spec), indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path) -> tuple[Matcher, Any]:
    """A saved matcher, in evaluation mode, and its tokenizer.

    Raises:
        RoadmapError: If the folder holds no matcher.
    """
    path = Path(folder) / "matcher.json"
    if not path.is_file():
        raise RoadmapError(f"{folder} holds no matcher (no matcher.json in it); make one with: python train.py --output {folder}")
    known = {field.name for field in fields(Spec)}
    spec = Spec(**{key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key in known})
    matcher = _CLASSES[spec.arch](spec, load_encoder(str(folder), dropout=None))
    if matcher.head is not None:
        matcher.head.load_state_dict(load_file(Path(folder) / "head.safetensors"))
    if torch.cuda.is_available():
        matcher.cuda()
    return matcher.eval(), AutoTokenizer.from_pretrained(folder)
