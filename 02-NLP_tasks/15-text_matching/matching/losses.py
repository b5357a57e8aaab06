"""Four ways to say "these two belong together, those two do not". Cosines are in [-1, 1], labels are 1 (same) or 0.

Every function returns a scalar. The lesson checks each one against numbers worked out by hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cosine_mse(cosine: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared distance of the cosine to its label: 1 for a match, 0 (unrelated, not opposite) for the rest.

    A target of -1 for negatives cannot be met: of three texts that differ pairwise, no more than two can be opposite.
    Source: Reimers and Gurevych (2019), Sentence-BERT, "regression objective function".

    Args:
        cosine: Of each pair, shape (pairs,).
        labels: 1 or 0, shape (pairs,).
    """
    return F.mse_loss(cosine, labels.to(cosine.dtype))


def contrastive(cosine: torch.Tensor, labels: torch.Tensor, margin: float = 0.5) -> torch.Tensor:
    """Pull matches together; push the others apart until their distance 1 - cosine exceeds the margin, then let them be.

    Source: Hadsell, Chopra, LeCun (2006), Dimensionality Reduction by Learning an Invariant Mapping, equation 4.

    Args:
        cosine: Of each pair, shape (pairs,).
        labels: 1 or 0, shape (pairs,).
        margin: Distance from which negatives are left alone, between 0 and 2.
    """
    distance = 1 - cosine
    same = labels.to(cosine.dtype)
    return (same * distance**2 + (1 - same) * F.relu(margin - distance) ** 2).mean() / 2


def info_nce(
    cosine: torch.Tensor, target: torch.Tensor, ignore: torch.Tensor | None = None, temperature: float = 0.05
) -> torch.Tensor:
    """Pick the right candidate out of all in the batch: cross-entropy over cosines divided by the temperature.

    Source: van den Oord, Li, Vinyals (2018), Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.

    Args:
        cosine: Of each anchor to each candidate, shape (anchors, candidates).
        target: Index of the right candidate of each anchor, shape (anchors,).
        ignore: True where a candidate must not count as wrong (another known match), shape (anchors, candidates).
        temperature: The smaller, the more the hardest negatives matter.
    """
    logits = cosine / temperature
    if ignore is not None:
        logits = logits.masked_fill(ignore, -torch.inf)
    return F.cross_entropy(logits, target)


def cosent(cosine: torch.Tensor, labels: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """Every match should have a larger cosine than every other pair: log(1 + sum of exp((negative - positive) / temperature)).

    Only the order counts, as for Spearman's correlation and AUC; no label is a target value.
    Source: Su (2022), CoSENT: a more efficient sentence vector scheme than Sentence-BERT.

    Args:
        cosine: Of each pair, shape (pairs,).
        labels: 1 or 0, shape (pairs,).
        temperature: 0.05 is the scale 20 of the source.
    """
    gaps = (cosine[:, None] - cosine[None, :]) / temperature  # row minus column
    wrong_way = labels[:, None] < labels[None, :]  # the row is a negative, the column a positive
    return torch.logsumexp(torch.cat([gaps.new_zeros(1), gaps[wrong_way]]), dim=0)
