"""One module, one name: `models` and `service` of a checkout are foldserve.models and foldserve.service.

In a checkout's root both names can be imported. Under a second name each module would be there twice, with classes and
state of its own. So the second name leads to the very same modules. Where foldserve is installed only `foldserve` is on
the import path, and a project's own `models` is its own.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _SameModule(MetaPathFinder, Loader):
    """Finds each module of a package where it is as a part of foldserve."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
        return ModuleSpec(name, self) if name.startswith(f"{self._package}.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See Loader."""
        module = import_module(f"foldserve.{spec.name}")
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """See Loader. It was executed under its own name; the import system has just replaced its spec."""
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name)


def lead_to_foldserve(package: str) -> None:
    """Have this package, which was imported by its second name, be the one of foldserve."""
    sys.modules[package] = import_module(f"foldserve.{package}")
    sys.meta_path.insert(0, _SameModule(package))
