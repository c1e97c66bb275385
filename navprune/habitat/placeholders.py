"""Makes habitat-lab importable where habitat-sim is not installed.

habitat-lab names classes of habitat_sim and of its magnum and corrade in base classes, annotations and defaults of
modules that PointNav imports without using them. While it is imported, placeholders stand in for what is absent;
afterwards they are gone from `sys.modules`, so that whoever looks for habitat_sim finds that it is not there.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, NoneType
from typing import Any

from navprune.errors import UserError
from navprune.installing import HABITAT_LAB, HABITAT_SIM, OPENCV

ROOTS = ("habitat_sim", "magnum", "corrade")


class Placeholder(ModuleType):
    """An absent module or anything in it: may be imported, named, derived from and, during imports, called; is falsy.

    Touched afterwards it raises UserError.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package: modules may be imported from it

    def __getattr__(self, name: str) -> "Placeholder":
        if name.startswith("__"):  # what Python itself asks of any object
            raise AttributeError(name)
        return self._part(name)

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        """What the absent would return."""
        return self._part("__call__")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[()]:
        return ()

    def __bool__(self) -> bool:
        return False

    def _part(self, name: str) -> "Placeholder":
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            raise UserError(f"habitat-sim is not installed, so there is no {self.__name__}.{name}; {HABITAT_SIM}")
        return Placeholder(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    """Finds a placeholder for every module below some roots."""

    def __init__(self, roots: list[str]) -> None:
        self._roots = roots

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self._roots else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def placeholders() -> Iterator[None]:
    """In this context `import habitat_sim` and `import magnum` give placeholders where the real ones are absent.

    For importing code that names habitat-sim's classes at its top level, habitat-lab's own or a user's.
    """
    finder = _Finder([root for root in ROOTS if not is_installed(root)])
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, Placeholder)]:
            del sys.modules[name]


def is_installed(name: str) -> bool:
    """Whether a top-level module is there, without importing it; placeholders and mere folders do not count."""
    if name in sys.modules:
        return not isinstance(sys.modules[name], (Placeholder, NoneType))
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def import_habitat_lab() -> None:
    """Import habitat-lab; raises UserError where it is not installed or its OpenCV does not load or is too new."""
    if not is_installed("habitat"):
        raise UserError(f"habitat-lab is not installed; {HABITAT_LAB}")
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"habitat-lab needs OpenCV, which does not load ({error}); {OPENCV}") from None
    if is_installed("gym_notices"):
        # gym tells every process that it is unmaintained, which habitat-lab's users cannot change.
        importlib.import_module("gym_notices.notices").notices.clear()
    try:
        with placeholders():
            importlib.import_module("habitat")
    except ValueError as error:
        # Its maps are coloured when it is imported, and OpenCV 5 returns colours in another shape.
        if cv2.__version__.startswith("4."):
            raise
        raise UserError(f"habitat-lab does not work with OpenCV {cv2.__version__} ({error}); {OPENCV}") from None
