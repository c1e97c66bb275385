import numpy as np
import pytest
import torch

from navprune.images import sources
from navprune.images.sources import Arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_normalisation_is_exact_however_many_images_are_looked_at_together(dtype, monkeypatch):
    values = np.random.default_rng(0).integers(100, 256, (50, 3, 4, 5)).astype(dtype)
    rows = torch.arange(0, 50, 2)
    monkeypatch.setattr(sources, "CHUNK", 7)
    mean, deviation = Arrays(values).normalisation(rows)
    wanted = values[::2].astype(np.float64)
    np.testing.assert_allclose(mean.flatten(), wanted.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(deviation.flatten(), wanted.std((0, 2, 3)), rtol=1e-6)


def test_a_constant_channel_has_no_deviation_to_divide_by():
    mean, deviation = Arrays(np.full((4, 1, 2, 2), 7, np.uint8)).normalisation(torch.arange(4))
    assert mean.item() == 7 and deviation.item() == 1
