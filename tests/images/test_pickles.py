import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from labelled_images import python2_pickle

from navprune.images.pickles import CALLED, unpickled

KEYS = st.binary(min_size=1, max_size=5).map(lambda key: key.hex().encode())
ARRAYS = arrays(np.uint8, array_shapes(max_dims=2, max_side=20))
VALUES = st.lists(st.integers() | st.binary(min_size=1)) | st.integers() | ARRAYS | ARRAYS.map(np.asfortranarray)


def python3_pickle(value):
    return pickle.dumps(value, protocol=2)


@pytest.mark.parametrize("dumped", [python2_pickle, python3_pickle])
@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_was_written_is_read(dumped, held):
    found = unpickled(dumped(held))
    assert list(found) == [key.decode() for key in held]
    for one, other in zip(found.values(), held.values()):
        assert type(one) is type(other) and np.array_equal(one, other)


class Calls:
    def __init__(self, *reduced):
        self._reduced = reduced

    def __reduce__(self):
        return self._reduced


@pytest.mark.parametrize(
    "held",
    [
        Calls(os.system, ("exit 1",)),
        Calls(eval, ("1",)),
        Calls(getattr, ([], "append")),
        np.zeros(3),
        np.array([None]),
        np.uint8(1),
        np.zeros(3, "S2"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_any_other_function_or_type_is_refused(held, protocol):
    with pytest.raises(pickle.UnpicklingError, match=r"it names|not of bytes"):
        unpickled(pickle.dumps({b"data": held}, protocol=protocol))


def test_a_pickle_cannot_change_what_reads_it():
    function = b"cnumpy.core.multiarray\n_reconstruct\n"
    state = b"N}X\x04\x00\x00\x00markK\x01s\x86"  # (None, {"mark": 1}): attributes for BUILD to set
    with pytest.raises(TypeError):
        unpickled(b"\x80\x02" + function + state + b"b0}.")
    assert not any(hasattr(each, "mark") for each in CALLED.values())


@given(st.data())
def test_a_cut_pickle_is_never_read_as_a_whole(data):
    whole = python2_pickle({b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 2]})
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, TypeError)):
        unpickled(whole[: data.draw(st.integers(0, len(whole) - 1))])
