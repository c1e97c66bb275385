"""habitat-lab over the embedded simulator or habitat-sim.

Importing this package makes habitat-lab importable where habitat-sim is absent and registers the embedded simulator
with it under the name `NavPruneSim-v0`. Raises UserError where habitat-lab is not installed.
"""

from navprune.habitat.placeholders import import_habitat_lab

import_habitat_lab()

from navprune.habitat.embedded import EmbeddedSimulator  # noqa: E402
from navprune.habitat.settings import lab_config, make_env  # noqa: E402

__all__ = ["EmbeddedSimulator", "lab_config", "make_env"]
