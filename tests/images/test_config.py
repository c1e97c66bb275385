import subprocess
import sys

import pytest

from navprune.errors import UserError
from navprune.images.config import ImagesConfig


@pytest.mark.parametrize(
    "settings",
    [
        {"source": ""},
        {"validation": -0.1},
        {"validation": 1},
        {"test": 1.0},
        {"split_seed": 0.5},
        {"zoom": 0.0},
        {"pad": 4, "zoom": 0.5},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UserError, match=f"images.{next(iter(settings))}"):
        ImagesConfig(**settings)


def test_reading_it_loads_no_torch():
    code = "import sys, navprune.images.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
