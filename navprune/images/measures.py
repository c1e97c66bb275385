"""How well images are told apart."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

TOP1, TOP5 = MEASURES = ("top1", "top5")
PLACES = {TOP1: 1, TOP5: 5}
CROSS_ENTROPY, PREDICTION = "cross_entropy", "prediction"


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Whether the label of each image is the likeliest class, or among the five likeliest, by measure: bool [B].

    Logits are [B, classes], labels int64 [B]; of equal logits the earlier class comes first, as in `argmax`, and NaN
    counts against the label wherever it stands.
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = (~(logits <= own) | (logits == own) & earlier).sum(1)
    return {name: rank < places for name, places in PLACES.items()}


def measured(
    answer: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """What `answer` says of batches of images [B, C, H, W] and labels int64 [B], as logits [B, classes].

    Of each batch the `hits`, the cross-entropy in nats, float32 [B], and the class that is predicted, int64 [B].
    """
    for images, labels in batches:
        logits = answer(images).float()
        theirs = labels.to(logits.device)
        losses = F.cross_entropy(logits, theirs, reduction="none")
        yield {**hits(logits, theirs), CROSS_ENTROPY: losses, PREDICTION: logits.argmax(1)}
