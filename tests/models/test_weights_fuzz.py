"""Broken weight files: each is read or refused with one line, without a crash and without much memory."""

import argparse
import io
import resource
import zipfile

import pytest
import safetensors.torch
import torch
from mutations import COUNT, mutants
from omegaconf import OmegaConf

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.weights import PREFIX, read_foreign

ROOM = 500 * 1024  # KiB that the process may grow by; the files have less than 100


def _saved(encoder, **settings):
    policy = build(PolicySpec(encoder, 4, 4), seed=0)
    state = {PREFIX + key: value for key, value in policy.state_dict().items()}
    config = OmegaConf.create({"seed": 7, "sensors": ["depth"]}) if not settings else argparse.Namespace(seed=7)
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "config": config}, buffer, **settings)
    return buffer.getvalue()


SMALL = encoder_spec("resnet18", (1, 64, 64), 2, output=4)


def _archives(count):
    """Zip archives, broken anywhere."""
    return mutants(_saved(SMALL), count, seed=1)


def _old_files(count):
    """Files from before torch 1.6, broken anywhere."""
    return mutants(_saved(encoder_spec("blind"), _use_new_zipfile_serialization=False), count, seed=2)


def _pickles(count):
    """Zip archives that are whole, around a broken pickle."""
    with zipfile.ZipFile(io.BytesIO(_saved(encoder_spec("blind")))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (key,) = (name for name in members if name.endswith("data.pkl"))
    for mutant in mutants(members[key], count, seed=3):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, mutant if name == key else data)
        yield buffer.getvalue()


def _safetensors(count):
    """Of safetensors, broken anywhere."""
    policy = build(PolicySpec(encoder_spec("blind"), 4, 4), seed=0)
    return mutants(safetensors.torch.save({k: v.contiguous() for k, v in policy.state_dict().items()}), count, seed=4)


@pytest.mark.parametrize(
    "broken, name",
    [(_archives, "a.pth"), (_old_files, "a.pt"), (_pickles, "a.ckpt"), (_safetensors, "a.safetensors")],
)
def test_broken_files_are_read_or_refused_in_one_line(tmp_path, broken, name):
    path = tmp_path / name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, data in enumerate(broken(COUNT)):
        path.write_bytes(data)
        try:
            read_foreign(path)
        except UserError as error:
            assert "\n" not in str(error) and name in str(error), number
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM
