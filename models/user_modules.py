"""Import the user's own packages `models` and `service`, whose names are foldserve's too, as their program does.

Most projects have a `models`. While `own_packages_aside()` is open, foldserve's packages of these names are out of the
table of imported modules, so that an import finds the project's; behind it they are back, and the project's live on in
what was made of them. Only what foldserve gives to networks, models.image_input, stays within reach where the project
has no module of that name. One process, one thread: only the command line does this.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

OWN_PACKAGES: Final = ("models", "service")
FOR_NETWORKS: Final = "models.image_input"
_ROOT: Final = Path(__file__).resolve().parents[1]


def project_has_them() -> bool:
    """Whether sys.path leads to a package of such a name that is not foldserve's."""
    for name in OWN_PACKAGES:
        spec = PathFinder.find_spec(name)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if folders and Path(folders[0]).resolve() != _ROOT / name:
            return True
    return False


@contextlib.contextmanager
def own_packages_aside() -> Iterator[None]:
    """Within, `import models` is an import of the project's."""
    ours = {name: module for name, module in sys.modules.items() if is_own_name(name)}
    for name in ours:
        del sys.modules[name]
    finder = _ByPathAlone(ours.get(FOR_NETWORKS))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if is_own_name(name)]:
            del sys.modules[name]
        sys.modules.update(ours)


class _ByPathAlone:
    """Finds modules of these names where the path leads.

    The finder of an editable install knows foldserve's by name, and would mix them into the project's package.
    """

    def __init__(self, for_networks: ModuleType | None) -> None:
        self._for_networks = for_networks

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not is_own_name(name):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None and name == FOR_NETWORKS and self._for_networks is not None:
            return ModuleSpec(name, _Loaded(self._for_networks))
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


class _Loaded(Loader):
    """A loader of a module that is there already, and stays as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which the import system has just replaced


def is_own_name(name: str) -> bool:
    """Whether a module of this name is, or would be, in one of the packages."""
    return name.partition(".")[0] in OWN_PACKAGES
