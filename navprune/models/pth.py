"""Files of weights from anywhere: nothing in them is executed, and no size they declare is believed."""

from __future__ import annotations

import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import safe_globals

from navprune.errors import UserError

SAFETENSORS = ".safetensors"
LONGEST_NAME = 1000  # characters of a tensor's name, with those of the dictionaries around it
ZIP_START = b"PK\x03\x04"
PICKLES_BEFORE = 3  # in files from before torch 1.6: a magic number, the protocol, the machine
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
INERT_PACKAGES = ("omegaconf.", "yacs.config.", "habitat.config.", "habitat_baselines.config.")
INERT_NAMES = frozenset(
    {"argparse.Namespace", "collections.defaultdict", "_operator.getitem", "operator.getitem"}
    | {f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Sequence", "Tuple", "Union")}
    | {f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "object", "set", "str")}
    | {"builtins.tuple", "builtins.type"}
)


class Inert:
    """Stands for every class of a stored configuration; instances are empty dictionaries that take any state."""

    def __new__(cls, *args: object, **values: object) -> OrderedDict:  # type: ignore[misc]
        """An empty dictionary."""
        return OrderedDict()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], frozenset[str]]:
    """All tensors of a file {dotted name: tensor}, in whatever dictionaries they lie, and the classes that it names.

    Read are .safetensors, zip archives of `torch.save` and torch's older files, with `weights_only=True`. Objects of
    configurations beside the tensors (`INERT_PACKAGES`, `INERT_NAMES`) are let in as `Inert`; any other object raises
    UserError, as does a file that is damaged. What is returned is to go through `checked` before it is looked at.
    """
    loaded, names = _load(path)
    found, waiting, entered = {}, [("", loaded)], set()
    for name, value in waiting:  # which grows on the way
        if isinstance(value, Tensor):
            found[name] = value.detach()
        elif isinstance(value, Mapping) and len(name) < LONGEST_NAME and id(value) not in entered:
            entered.add(id(value))  # a dictionary may hold itself
            inside = ((key, item) for key, item in value.items() if isinstance(key, str | int))
            waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in inside]
    return found, names


def checked(tensors: Mapping[str, Tensor], room: int) -> dict[str, Tensor]:
    """Copy as float32 of tensors that `read_tensors` found in a file of `room` bytes.

    Raises UserError for what is no dense tensor of finite real numbers, and where together they claim to be larger
    than the file.
    """
    state = {}
    for key, value in tensors.items():
        if not key.isprintable():
            raise UserError(f"a tensor is named {key!r}; fetch it again")
        if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise UserError(f"{key} is no dense tensor of real numbers; these are no weights of a policy")
        room -= value.numel() * value.element_size()
        if room < 0 or not value.numel():
            raise UserError(f"{key} claims the shape {list(value.shape)}, which is not there; fetch it again")
        # A copy, since the file is only mapped into memory and may change.
        state[key] = value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not state[key].isfinite().all():
            raise UserError(f"{key} has values that are not finite; fetch it again")
    return state


def _load(path: Path) -> tuple[Any, frozenset[str]]:
    """What a file holds, and the classes that it names."""
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP_START)) == ZIP_START
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if path.suffix.lower() == SAFETENSORS:
            return safetensors.torch.load_file(path), frozenset()
        names = _zipped_names(path) if zipped else _legacy_names(path)
        inert: list[Any] = [(Inert, name) for name in names if name.startswith(INERT_PACKAGES) or name in INERT_NAMES]
        with warnings.catch_warnings(), safe_globals(inert):
            warnings.simplefilter("ignore")  # of unusual pickles
            # Mapped: a tensor that is declared larger than what is stored cannot reach beyond the file.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), names
    except UserError:
        raise
    except Exception as error:  # over a damaged file, torch, zipfile and pickle raise nearly anything
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        reason = "is no file of torch.save or safetensors, as its name says, or a damaged one; fetch it again"
        if refused:
            reason = f"holds an object of {refused[1]}; save its 'state_dict' alone and load that"
        raise UserError(f"{path}: {reason}") from error


def _zipped_names(path: Path) -> frozenset[str]:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise UserError(f"{path}: is a TorchScript module, with code; save its state_dict() with torch.save")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{path}: is a compressed archive; save the weights anew with torch.save")
        (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        return _names(archive.read(name), room=path.stat().st_size)


def _legacy_names(path: Path) -> frozenset[str]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(PICKLES_BEFORE):
            for _ in pickletools.genops(data):  # type: ignore[arg-type]  # read and readline suffice
                pass
        return _names(data, room=len(data))


def _names(pickled: bytes | mmap.mmap, room: int) -> frozenset[str]:
    """Full names of the classes and functions that a pickle refers to, in Python 3's spelling.

    Raises ValueError where a tensor's storage is declared to have more elements than there is `room` for in bytes:
    old files make torch set aside whatever they ask for.
    """
    names, largest = set(), 0
    for opcode, argument, _ in pickletools.genops(pickled):  # type: ignore[arg-type]
        if opcode.name == "MARK":  # a storage follows: its type, name, place and number of elements
            largest = 0
        elif opcode.name in NUMBERS:
            largest = max(largest, int(argument or 0))
        elif opcode.name == "BINPERSID" and largest > room:
            raise ValueError(f"a storage of {largest} elements in a file of {room} bytes")
        elif opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
    return frozenset(names)
