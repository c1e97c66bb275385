"""The rules of the public code behind the VGG16 table (github.com/ZJCV/SSL), to reproduce what it published.

Every filter (or every input channel, or both) of all convolutions gets a score; the share asked for of all scores,
the lowest, lies at or below one threshold. Units above it stay, and in each layer so many more, drawn at random from
the others, that the number is a multiple of 8. Its `group_lasso` is the sum of squares, without both roots of the
group lasso: as a penalty, that is weight decay, the same over filters as over channels. Methods and penalties of this
package that do what the papers say are in `pruning`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.classifiers import Vgg
from navprune.pruning.groups import BOTH, CHANNELS, FILTERS

SUM_SQUARES, MEAN_ABS = "sum-squares", "mean-abs"
RULES = {
    SUM_SQUARES: lambda weight, dims: weight.square().sum(dims),
    MEAN_ABS: lambda weight, dims: weight.abs().mean(dims),
}
MULTIPLE = 8


@dataclass(frozen=True)
class Selection:
    """Units to keep, {width: bool [channels]}, the threshold, and the share of filters, channels or both that goes."""

    keep: dict[str, Tensor]
    threshold: float
    ratio: float


def select(model: nn.Module, over: str, score: str, share: float, generator: torch.Generator) -> Selection:
    """Choose what the public code keeps of a VGG network, over "filters", "channels" or "both".

    `score` is "sum-squares" or "mean-abs". Over filters a unit stays for the filter that writes it; over channels for
    those that read it, and the last convolution, which no other reads, stays whole; over both for either, and what a
    pooling follows stays whole. Where that code may draw a channel that stays already, and so keep it twice, this
    draws among the others; the widths are the same. Raises UserError for other networks.
    """
    if not isinstance(model, Vgg):
        raise UserError(f"the published rules prune VGG networks, not {type(model).__name__}: choose another method")
    if over not in (FILTERS, CHANNELS, BOTH) or score not in RULES or not 0 < share < 1:
        raise UserError(f"over={over!r}, score={score!r}, share={share:g}: give filters, channels or both, a score of "
                        f"{', '.join(RULES)}, and a share between 0 and 1")  # fmt: skip
    convs = {f"features.{i}": layer for i, layer in model.features.named_children() if isinstance(layer, nn.Conv2d)}
    weights = [conv.weight.detach() for conv in convs.values()]
    filters = [RULES[score](weight, (1, 2, 3)) for weight in weights]
    channels = [RULES[score](weight, (0, 2, 3)) for weight in weights]
    everything = torch.cat((filters if over != CHANNELS else []) + (channels if over != FILTERS else []))
    threshold = everything.sort().values[int(len(everything) * share)]
    pooled = _before_pooling(model)
    keep = {}
    for index, name in enumerate(convs):
        by_filter = filters[index] > threshold
        by_channel = channels[index + 1] > threshold if index + 1 < len(convs) else torch.ones_like(by_filter)
        above = {FILTERS: by_filter, CHANNELS: by_channel, BOTH: by_filter | by_channel}[over]
        if over == BOTH and name in pooled:
            above = torch.ones_like(above)
        keep[name] = rounded_up(above.cpu(), generator)
    before, after = ([len(kept) for kept in keep.values()], [int(kept.sum()) for kept in keep.values()])
    return Selection(keep, float(threshold), pruned_ratio(before, after, over, model.spec.input[0]))


def rounded_up(above: Tensor, generator: torch.Generator) -> Tensor:
    """Add units at random to a mask, bool [n], until their number is a multiple of 8, at least 8, or all."""
    kept = min(len(above), max(MULTIPLE, -(-int(above.sum()) // MULTIPLE) * MULTIPLE))
    others = (~above).nonzero().flatten()
    added = others[torch.randperm(len(others), generator=generator)[: kept - int(above.sum())]]
    mask = above.clone()
    mask[added] = True
    return mask


def pruned_ratio(before: Sequence[int], after: Sequence[int], over: str, inputs: int = 3) -> float:
    """The share of filters, input channels or both of a chain of convolutions that is gone, from its widths."""

    def total(widths: Sequence[int]) -> int:
        filters, channels = sum(widths), inputs + sum(widths[:-1])
        return (filters if over != CHANNELS else 0) + (channels if over != FILTERS else 0)

    return 1 - total(after) / total(before)


def _before_pooling(model: Vgg) -> set[str]:
    """The convolutions between which and the next one the image is pooled."""
    order = [(f"features.{i}", layer) for i, layer in model.features.named_children()]
    order = [(name, layer) for name, layer in order if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    return {name for (name, _), (_, behind) in pairwise(order) if isinstance(behind, nn.MaxPool2d)}
