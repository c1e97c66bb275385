"""Prunes VGG16-BN by the published rules and writes counts.json; see README.md.

The published rows are recomputed from their recorded widths. The same rules then prune random weights (several
seeds), and weights trained for a short while on synthetic images, once with the penalty of the public code and once
with the group lasso.
"""

import argparse
import json
import math
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.comparisons.published import pruned_ratio, select
from navprune.costs.counting import count
from navprune.models.build import build
from navprune.models.classifiers import ClassifierSpec, classifier_spec
from navprune.models.widths import widths, with_widths
from navprune.pruning.penalties import proximal_step, survivors
from navprune.pruning.structure import structure_of

HERE = Path(__file__).parent
SHARE = 0.2
CLASSES = 100
PUBLISHED, GROUP_LASSO = "published", "group lasso"
PUBLISHED_STRENGTH = 1e-5
WAYS = [(over, score) for over in ("filters", "channels", "both") for score in ("sum-squares", "mean-abs")]


def cost(spec: ClassifierSpec) -> dict[str, int]:
    """Operations in thop's counting, and parameters; nothing is computed."""
    with torch.device("meta"):
        counted = count(build(spec), torch.zeros(1, *spec.input))
    return {"operations": counted.thop, "parameters": counted.parameters}


def recomputed(published: dict, spec: ClassifierSpec) -> list[dict]:
    """The published rows from their widths alone."""
    names = [name for name in widths(spec) if name.startswith("features.")]
    dense = [widths(spec)[name] for name in names]
    return [
        {
            "over": row["over"],
            "score": row["score"],
            **cost(with_widths(spec, dict(zip(names, row["widths"], strict=True)))),
            "ratio": pruned_ratio(dense, row["widths"], row["over"]),
        }
        for row in published["rows"]
    ]


def pruned(features: nn.Module, spec: ClassifierSpec, seed: int) -> list[dict]:
    """All six rows for the convolutions of a network; what they cost is counted in the network of `spec`."""
    rows = []
    for over, score in WAYS:
        found = select(features, over, score, SHARE, torch.Generator().manual_seed(seed))
        channels = {name: int(kept.sum()) for name, kept in found.keep.items()}
        rows.append(
            {
                "over": over,
                "score": score,
                **cost(with_widths(spec, channels)),
                "ratio": found.ratio,
                "threshold": found.threshold,
                "widths": list(channels.values()),
            }
        )
    return rows


def gratings(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [size, 3, 32, 32] of 100 classes: gratings of ten directions and ten colours, with phase and noise."""
    labels = torch.randint(CLASSES, (size,), generator=generator)
    turn, hue = math.pi * (labels // 10) / 10, 2 * math.pi * (labels % 10) / 10
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    along = x * torch.cos(turn)[:, None, None] + y * torch.sin(turn)[:, None, None]
    phase = 2 * math.pi * torch.rand(size, 1, 1, generator=generator)
    colours = torch.stack([torch.cos(hue - 2 * math.pi * i / 3) for i in range(3)], dim=1)
    waves = torch.sin(0.8 * along + phase)[:, None] * 0.5 + colours[:, :, None, None] * 0.5
    return waves + 0.3 * torch.randn(waves.shape, generator=generator), labels


def trained(penalty: str, strength: float, steps: int, seed: int) -> tuple[nn.Module, dict]:
    """VGG16-BN's convolutions after `steps` of SGD on gratings, with what is known of the training."""
    model = build(classifier_spec("cifar_vgg16_bn", CLASSES), seed)
    groups, generator = structure_of(model).groups, torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    convolutions = [layer.weight for layer in model.features if isinstance(layer, nn.Conv2d)]
    began = time.perf_counter()
    for _ in range(steps):
        images, labels = gratings(32, generator)
        error = F.cross_entropy(model(images), labels)
        decay = strength * sum(weight.square().sum() for weight in convolutions) if penalty == PUBLISHED else 0
        optimiser.zero_grad()
        (error + decay).backward()
        optimiser.step()
        if penalty == GROUP_LASSO:
            proximal_step(model, groups, optimiser.param_groups[0]["lr"] * strength)
    kept = survivors(model, groups)
    return model, {
        "penalty": penalty,
        "strength": strength,
        "steps": steps,
        "cross_entropy": error.item(),
        "zero_filters": sum(int((~alive).sum()) for alive in kept.values()),
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    """Writes counts.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="random networks (default: 3)")
    parser.add_argument("--steps", type=int, default=80, help="training steps with each penalty (default: 80)")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.01, 0.013], help="of the group lasso")
    parser.add_argument("--out", type=Path, default=HERE / "counts.json")
    options = parser.parse_args()
    spec = classifier_spec("vgg16_bn", CLASSES)
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "unpruned": cost(spec),
        "published": recomputed(published, spec),
        "random": [pruned(build(spec, seed), spec, seed) for seed in range(options.seeds)],
        "trained": [],
    }
    for penalty, strength in [(PUBLISHED, PUBLISHED_STRENGTH), *((GROUP_LASSO, s) for s in options.strengths)]:
        if options.steps:
            model, training = trained(penalty, strength, options.steps, seed=0)
            results["trained"].append({**training, "rows": pruned(model, spec, seed=0)})
            print(training, flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
