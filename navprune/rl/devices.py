"""The devices that a run learns on."""

import torch

from navprune.errors import UserError


def default_device() -> str:
    """Return `cuda` where there is some, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_count(name: str) -> int:
    """How many GPUs of this machine `trainer.device` lets workers have, one each: 0 where they are to use its cores."""
    kind, _, number = (default_device() if name == "auto" else name).partition(":")
    return (1 if number else torch.cuda.device_count()) if kind == "cuda" else 0


def device_of(name: str, worker: int = 0) -> torch.device:
    """Return the device that `trainer.device` names, of several workers on a machine each its own GPU.

    Raises UserError where torch cannot use it.
    """
    try:
        device = torch.device(default_device() if name == "auto" else name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", worker % torch.cuda.device_count())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device is {name}, which cannot be used here ({reason}); use auto or cpu") from error
    return device
