"""Labelled images that are quick to learn, and runs of small classifiers on them."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import nn

from navprune.images.splits import DRAWS
from navprune.models.classifiers import Classifier, classifier_spec
from navprune.rl.monitor import Timers
from navprune.rl.phases import supervised_phase
from navprune.rl.supervised import Reader, SupervisedConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train

CLASSES, SHAPE = 4, (3, 8, 8)
WHOLE = classifier_spec("cifar_resnet20", CLASSES, SHAPE, width=0.25)
SPEC = WHOLE.without_blocks([name for name in WHOLE.removable_blocks() if name != "layer1.0"])
"""One block in each stage."""


class Lost(Exception):
    """The power fails."""


@dataclass
class Patterns:
    """`count` images, each its class's pattern with noise; training views are brighter or darker by chance."""

    count: int
    seed: int = 0
    lose_at: int | None = None
    """The batch at which the power fails."""

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        patterns = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(99))
        self.labels = torch.arange(self.count) % CLASSES
        self.pixels = patterns[self.labels] + 0.5 * torch.randn(self.count, *SHAPE, generator=generator)
        self.classes, self.shape = tuple("abcd"), SHAPE
        self.mean = self.deviation = torch.ones(3, 1, 1)
        self.digest = f"patterns {self.count} {self.seed}"
        self.seen, self.taken = [], 0

    def __len__(self):
        return self.count

    def views(self, rows, draws=None):
        if draws is None:
            return self.pixels[rows]
        assert draws.shape == (len(rows), DRAWS)
        self.seen += rows.tolist()
        self.taken += 1
        if self.taken == self.lose_at:
            raise Lost
        return self.pixels[rows] + draws[:, :1, None, None]


class Dropping(Classifier):
    """A linear layer behind dropout."""

    def __init__(self):
        super().__init__(SPEC)
        self.drop, self.fc = nn.Dropout(), nn.Linear(3 * 8 * 8, CLASSES)

    def forward(self, images):
        return self.fc(self.drop(images.flatten(1)))


# Batches are out of step with passes over the 36 images, and updates with both.
CONFIG = SupervisedConfig(epochs=3, batch=10, steps=2, lr=0.05, schedule="cosine")
RUN = TrainerConfig(threads=1, checkpoint_seconds=0, window=1)


def splits(train=36, val=20, **options):
    return Patterns(train, **options), Patterns(val, seed=1) if val else None


def total(config=CONFIG, images=36):
    return config.frames(images)


def begin(folder, data=None, config=CONFIG, callbacks=(), network=SPEC, group=None, run=RUN):
    """A trainer of a classifier."""
    data = data or splits()
    run = replace(run, total_frames=config.frames(len(data[0])))
    return Trainer(network, data, run, supervised_phase(config, callbacks), folder, group=group, trainee=Reader)


def run(folder, data=None, config=CONFIG, callbacks=(), network=SPEC, run=RUN, config_yaml=""):
    """A whole run."""
    data = data or splits()
    run = replace(run, total_frames=config.frames(len(data[0])))
    return train(network, data, run, supervised_phase(config, callbacks), folder, config_yaml, trainee=Reader)


def reader(data=None, seed=0, group=None, network=None):
    """What learns, without a trainer."""
    generator, device = torch.Generator().manual_seed(seed), torch.device("cpu")
    made = network or SimpleNamespace(parameters=lambda: iter(()))
    return Reader(data or splits(), made, device=device, generator=generator, timers=Timers(), group=group)
