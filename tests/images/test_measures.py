import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from navprune.images.measures import CROSS_ENTROPY, PREDICTION, TOP1, TOP5, hits, measured

LOGITS = st.tuples(st.integers(1, 20), st.integers(1, 12)).flatmap(
    lambda shape: arrays("float32", shape, elements=st.integers(-2, 2))  # few values, so that many tie
)


@settings(deadline=None)
@given(LOGITS, st.integers(0, 99))
def test_of_equal_classes_the_earlier_is_likelier(values, seed):
    logits = torch.from_numpy(values)
    count, classes = logits.shape
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    found = hits(logits, labels)
    order = [[one for _, one in sorted((-value, one) for one, value in enumerate(row))] for row in logits.tolist()]
    ranks = [ranked.index(label) for ranked, label in zip(order, labels.tolist())]
    assert found[TOP1].tolist() == [rank < 1 for rank in ranks]
    assert found[TOP5].tolist() == [rank < 5 for rank in ranks]
    assert found[TOP1].equal(logits.argmax(1) == labels)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_what_is_no_number_is_never_right(wrong):
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    logits[0, wrong] = torch.nan
    assert not any(hits(logits, torch.tensor([label]))[TOP1] for label in range(3))


def test_a_pass_tells_each_image_in_any_batches():
    logits, labels = torch.randn(10, 7, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 7
    (whole,) = measured(lambda images: images, [(logits, labels)])
    parts = [*measured(lambda images: images, zip(logits.split(3), labels.split(3)))]
    assert all(torch.cat([part[name] for part in parts]).equal(whole[name]) for name in whole)
    assert whole[PREDICTION].equal(logits.argmax(1))
    torch.testing.assert_close(whole[CROSS_ENTROPY], -logits.log_softmax(1)[range(10), labels])
