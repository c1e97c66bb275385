"""Handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels, with values from 0 to 16."""

import numpy as np

from navprune.errors import UserError
from navprune.images.sources import Arrays, Source
from navprune.installing import IMAGES


def read_digits() -> Source:
    """All of them (Alpaydin & Kaynak, UCI, 1998); raises UserError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(f"digits come with scikit-learn, which is not installed; {IMAGES}") from None
    digits = load_digits()
    classes = tuple(str(name) for name in digits.target_names)
    pixels = digits.images[:, None].astype(np.uint8)
    return Source(Arrays(pixels), digits.target.astype(np.int64), classes, len(pixels))
