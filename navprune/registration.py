"""Makes `NavPrune/PointNav-v0` known to gymnasium and to gym without importing either."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE, ID = "gymnasium", "PointNav-v0"


def register() -> None:
    """Register with gymnasium, now or as soon as it is imported, so that importing navprune costs nothing."""
    if PACKAGE in sys.modules:
        _register_with_gymnasium()
    else:
        sys.meta_path.insert(0, _OnImport())


def register_with_gym() -> None:
    """What gym calls when it is imported: the entry point of the group `gym.envs`, which gives the namespace."""
    from gym.envs.registration import register

    register(id=ID, entry_point="navprune.tasks.old_gym:PointNav")


def _register_with_gymnasium() -> None:
    from gymnasium import register, registry

    name, module = f"NavPrune/{ID}", "navprune.tasks.gyms"
    if name not in registry:
        register(name, entry_point=f"{module}:PointNav", vector_entry_point=f"{module}:VectorPointNav")


class _OnImport:
    """Waits in `sys.meta_path` for gymnasium and registers once it is loaded."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != PACKAGE:
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _register_with_gymnasium()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
