import gc
import weakref
from pathlib import Path

import pytest

from navprune.errors import UserError
from navprune.simulator.scene import SceneLibrary

SCENES = Path(__file__).parents[1] / "data" / "reference" / "scene_datasets" / "reference"
APARTMENT, DUPLEX = SCENES / "apartment.glb", SCENES / "duplex.glb"


def test_a_scene_is_loaded_once():
    library = SceneLibrary()
    assert library.get(APARTMENT) is library.get(APARTMENT)


def test_a_full_library_keeps_what_is_used_and_what_was_used_last():
    library = SceneLibrary(limit=1e-9)
    used = library.get(APARTMENT)
    unused = weakref.ref(library.get(DUPLEX))
    assert library.get(APARTMENT) is used
    gc.collect()
    assert unused() is None
    assert library.get(DUPLEX) is library.get(DUPLEX)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.glb does not exist"):
        SceneLibrary().get(tmp_path / "nowhere.glb")


def test_a_scene_with_and_without_holes_are_two():
    library = SceneLibrary()
    assert library.get(APARTMENT, alpha_masks=True) is not library.get(APARTMENT)
