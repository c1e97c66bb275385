"""How well images are told apart."""

import torch
from torch import Tensor

TOP1, TOP5 = MEASURES = ("top1", "top5")
PLACES = {TOP1: 1, TOP5: 5}


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Whether the label of each image is the likeliest class, or among the five likeliest, by measure: bool [B].

    Logits are [B, classes], labels int64 [B]; of fewer than five classes all count.
    """
    ranked = logits.topk(min(max(PLACES.values()), logits.shape[1]), dim=1).indices == labels[:, None]
    return {name: ranked[:, :places].any(1) for name, places in PLACES.items()}


def shares(found: dict[str, Tensor]) -> dict[str, float]:
    """The share of hits by measure."""
    return {name: float(torch.mean(hit.double())) for name, hit in found.items()}
