import sys

import numpy as np
import pytest

from navprune.errors import UserError
from navprune.images.digits import read_digits


def test_all_digits_are_there():
    source = pytest.importorskip("sklearn") and read_digits()
    assert source.pixels.shape == (1, 8, 8) and len(source.labels) == source.training == 1797
    assert source.classes == tuple("0123456789") and np.unique(source.labels).tolist() == list(range(10))


def test_without_scikit_learn_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install '.\[images\]'"):
        read_digits()
