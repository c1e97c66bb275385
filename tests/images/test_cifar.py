import shutil
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from labelled_images import (
    cifar10_binary,
    cifar10_python,
    cifar100_binary,
    cifar100_python,
    learnable,
    python2_pickle,
    tar_of,
)

from navprune.errors import UserError
from navprune.images.cifar import read_cifar

MAKERS = {
    "10b": partial(cifar10_binary, per_batch=10),
    "10p": partial(cifar10_python, per_batch=10),
    "100b": partial(cifar100_binary, train=100),
    "100p": partial(cifar100_python, train=100),
}


@pytest.fixture(params=MAKERS)
def version(request, tmp_path):
    """The folder of each version in turn."""
    return MAKERS[request.param](tmp_path)


def test_folder_archive_and_folder_above_hold_the_same(version):
    archive = tar_of(version)
    before = {*version.parent.iterdir()}
    sources = [read_cifar(path) for path in (version, version.parent, archive)]
    assert {*version.parent.iterdir()} == before
    for source in sources:
        count = 100 if "100" in version.name else 10
        assert source.classes == tuple(f"class_{number}" for number in range(count))
        assert source.pixels.shape == (3, 32, 32)
        trained = np.arange(100) if count == 100 else np.tile(np.arange(10), 5)
        assert source.labels[: source.training].tolist() == trained.tolist()
        assert source.labels[source.training :].tolist() == list(range(count))
        first = source.pixels.whole(torch.arange(min(source.training, count))).numpy()
        assert np.array_equal(first, learnable(np.arange(count)))


def test_a_renamed_folder_is_known_by_its_files(version):
    assert read_cifar(version.rename(version.with_name("mine"))) is not None


def test_several_versions_are_not_chosen_from(tmp_path):
    cifar10_binary(tmp_path, 10)
    cifar100_python(tmp_path, 100)
    with pytest.raises(UserError, match="cifar-10-batches-bin, cifar-100-python; name one"):
        read_cifar(tmp_path)


def test_what_is_missing_is_named(version):
    names = sorted(path.name for path in version.iterdir() if "coarse" not in path.name)
    name = names[-1] if "10-b" in version.name else "test" if "python" in version.name else "test.bin"
    (version / name).unlink()
    with pytest.raises(UserError, match=f"{name} of {version.name} is missing"):
        read_cifar(version)


def test_a_cut_file_is_named(version):
    for path in sorted(version.iterdir()):
        data = path.read_bytes()
        if "names" in path.name or path.name == "batches.meta.txt":
            continue  # lines of text, whose lack labels show
        path.write_bytes(data[: len(data) // 2 - 7])
        with pytest.raises(UserError, match=f"{path.name} .*cut off"):
            read_cifar(version)
        path.write_bytes(data)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_archive_is_said_to_be(version, share):
    archive = tar_of(version)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="cut off"):
        read_cifar(archive)


def test_other_files_and_archives_are_none_of_it(tmp_path):
    (tmp_path / "a").write_text("b")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(tmp_path / "a", "../../a")
    assert [read_cifar(tmp_path / name) for name in ("a", "a.tar", ".")] == [None] * 3


def test_labels_beyond_the_classes_are_refused(tmp_path):
    for folder in (cifar10_binary(tmp_path / "b"), cifar10_python(tmp_path / "p")):
        names = folder / "batches.meta"
        if names.exists():
            names.write_bytes(python2_pickle({b"label_names": [b"a"] * 9}))
        else:
            names.with_suffix(".meta.txt").write_text("a\n" * 9)
        with pytest.raises(UserError, match="has the label 9, and there are 9 classes"):
            read_cifar(folder)


@pytest.mark.parametrize(
    "held",
    [
        {},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": ["0"]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": 0},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
    ],
)
def test_a_batch_that_holds_something_else_is_refused(tmp_path, held):
    folder = cifar10_python(tmp_path, 10)
    (folder / "data_batch_3").write_bytes(python2_pickle(held))
    with pytest.raises(UserError, match="data_batch_3 does not hold"):
        read_cifar(folder)


def test_the_names_of_another_version_are_refused(tmp_path):
    shutil.copy(cifar100_python(tmp_path) / "meta", cifar10_python(tmp_path) / "batches.meta")
    with pytest.raises(UserError, match=r"batches.meta has no list label_names"):
        read_cifar(tmp_path / "cifar-10-batches-py")
