"""habitat-lab's own environment over the reference scenes."""

from pathlib import Path

import pytest

from navprune.config import DataConfig

REFERENCE = Path(__file__).parents[1] / "data" / "reference"


@pytest.fixture(scope="session")
def reference():
    return DataConfig(folder=str(REFERENCE), name="reference", train="val", val="val")


@pytest.fixture
def make_lab(reference):
    """Makes RLTaskEnv for a task, with its configuration changed first by a function of `config.habitat`."""
    from habitat import read_write

    from navprune.habitat import lab_config, make_env

    made = []

    def make(task, change=lambda lab: None, data=reference, split="val"):
        config = lab_config(task, data, split)
        with read_write(config):
            config.habitat.environment.iterator_options.shuffle = False
            change(config.habitat)
        made.append(make_env(config))
        return made[-1]

    yield make
    for env in made:
        env.close()
