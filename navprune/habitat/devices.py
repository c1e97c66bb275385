"""Where habitat-sim draws, and what to do when it cannot."""

import importlib
import re

import torch

from navprune.errors import UserError
from navprune.habitat.placeholders import is_installed
from navprune.installing import HABITAT_SIM

NO_CUDA = -1
"""habitat-sim's number for the first EGL device there is, which without a graphics card is the CPU."""
EMBEDDED = "or use simulator=embedded, which needs no graphics device"
# What habitat-sim and Magnum print before they end the process, or the loader says of a missing library.
FAULTS = {
    r"unable to find (EGL device for )?CUDA device \d+": (
        "no EGL device belongs to this GPU: let the container have the driver's graphics part "
        "(NVIDIA_DRIVER_CAPABILITIES=all, libEGL_nvidia.so), or set gpu=-1 to draw on another EGL device"
    ),
    r"GLX context does not support|DISPLAY not detected|WindowlessGlx\w+::tryCreateContext": (
        "this habitat-sim was built for a screen: take a headless build"
    ),
    r"cannot retrieve OpenGL version|Failed to create OpenGL context|Failed to make platform current": (
        "OpenGL does not start: another libGL or libEGL, such as conda's, hides the driver's, or two versions of the "
        "driver are installed"
    ),
    r"WindowlessEgl\w+::tryCreateContext|Unable to create windowless context|cannot connect to EGL|no EGL devices": (
        "EGL does not start: install the graphics part of the driver, or Mesa (libegl1, libgl1-mesa-dri) and gpu=-1"
    ),
    r"lib(EGL|GL|GLX|OpenGL)\.so\.\d+: cannot open shared object": (
        "a graphics library is missing: install libegl1, libgl1 and libopengl0"
    ),
    r"GLIBCXX_[\d.]+' not found": (
        "the system's libstdc++ is older than habitat-sim's: conda install libstdcxx-ng -c conda-forge"
    ),
    r"CUDA_ERROR_\w+|cudaError\w*|CUDA error|CUDA driver version is insufficient": (
        "CUDA does not work: compare nvidia-smi with the installed driver, or set gpu=-1"
    ),
}


def gpu_of(env: int, wanted: int | None = None) -> int:
    """The GPU that draws for an environment: the wanted one, else the visible in turn, NO_CUDA where there is none."""
    if wanted is not None:
        return wanted
    visible = torch.cuda.device_count()
    return env % visible if visible else NO_CUDA


def check_habitat_sim() -> None:
    """Raise UserError where habitat-sim is not installed or cannot be loaded."""
    if not is_installed("habitat_sim"):
        raise UserError(f"simulator=habitat_sim: habitat-sim is not installed; {HABITAT_SIM}")
    try:
        importlib.import_module("habitat_sim")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"habitat-sim cannot be loaded: {advice(reason) or f'{reason}; {HABITAT_SIM}'}") from None


def advice(text: str) -> str | None:
    """What was wrong and what to do, in one line, if the text holds one of habitat-sim's graphics failures."""
    for pattern, remedy in FAULTS.items():
        for line in text.splitlines():
            if re.search(pattern, line):
                return f"{line.strip()}: {remedy}; {EMBEDDED}"
    return None
