"""Prune a network of your own to 60 % of its multiply-accumulates, and see that nothing but the cut changed it.

    python examples/prune_your_own_module.py

Any module that torch.fx can follow will do; docs/pruning.md says what that leaves out.
"""

import torch
from torch import nn

from navprune.pruning.config import PruningConfig
from navprune.pruning.prune import prune
from navprune.pruning.structure import structure_of


class TwoBranches(nn.Module):
    """A small classifier with a residual sum, for images [B, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.GroupNorm(8, 32), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 1)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 10]."""
        x = self.stem(images)
        return self.head((x + self.branch(x)).relu())


def main() -> nn.Module:
    """Return the smaller network."""
    torch.manual_seed(0)
    model, images = TwoBranches().eval(), torch.rand(4, 3, 32, 32)
    structure = structure_of(model, images)
    for group in structure.groups:
        print(f"{group.name}: {group.channels} channels in units of {group.unit}, read by {', '.join(group.readers)}")
    result = prune(model, PruningConfig(method="l1", budget="macs=0.6"), example=images)
    print(f"kept {result.reached['macs']:.1%} of the multiply-accumulates: {result.widths}")

    # The law: the smaller network computes what the whole one computes with the same channels silenced.
    with torch.no_grad(), structure.mask(result.keep):
        torch.testing.assert_close(result.model(images), model(images))
    return result.model


if __name__ == "__main__":
    print(main())
