"""From a TARGET on the command line to a network: a name of models/, or package.module:factory of the user's.

The table NETWORKS is the one list of our networks. Nothing of torch is built before a network is asked for.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from foldserve.models.errors import ExportError, FactoryFailed, UnknownTarget
from foldserve.models.image_input import ImageInput
from foldserve.models.weights import load_weights
from foldserve.service.did_you_mean import did_you_mean, similar

_SEED = 0
_PLAIN_VALUES = (type(None), bool, int, float, complex, str)


@dataclass(frozen=True)
class Target:
    """A network that was asked for.

    name: what to call it in a repository when the user gives no name.
    module: as its factory returned it; weights loaded, mode untouched.
    example_inputs: one per argument of forward, or a dict by their names, tensors or nested tensors; dim 0 =
        rows; empty when the user's factory gave none.
    dynamic_axes: per input, the dims besides rows that are dynamic, and their names: {"x": {1: "length"}}.
    input_names: None for the parameter names of the module's forward.
    source: TARGET as it was given, for the manifest.
    labels: names of the output's columns; None where the network says none.
    note: what was done to the names in the weights file, in one line; empty where nothing was.
    """

    name: str
    module: nn.Module
    example_inputs: tuple[Any, ...] | dict[str, Any]
    dynamic_axes: dict[str, dict[int, str]] | None
    input_names: tuple[str, ...] | None
    source: str
    labels: tuple[str, ...] | None = None
    note: str = ""


@dataclass(frozen=True)
class _Network:
    """Where a network of ours is: its file, and the functions in it."""

    file: str
    build: str = "build"
    example_inputs: str = "example_inputs"
    input_names: tuple[str, ...] | None = None


NETWORKS: dict[str, _Network] = {
    "mlp": _Network("mlp"),
    "convnet": _Network("convnet"),
    "resnet18": _Network("resnet", "build_18"),
    "resnet34": _Network("resnet", "build_34"),
    "resnet50": _Network("resnet", "build_50"),
    "resnet_small": _Network("resnet", "build_small", "example_inputs_small"),
    "mobilenet": _Network("mobilenet"),
    "unet": _Network("unet"),
    "lstm": _Network("lstm"),
    "transformer": _Network("transformer"),
    "digits": _Network("digits"),
    # The package calls its parameter "inputs", which reads badly inside the "inputs" of a JSON request.
    "efficientnet_lite0": _Network("efficientnet_lite0", input_names=("x",)),
    "efficientnet_lite0_uint8": _Network("efficientnet_lite0", "build_uint8", "example_inputs_uint8"),
}


def available() -> tuple[str, ...]:
    """Return the names of the networks in models/ that resolve() knows."""
    return tuple(NETWORKS)


def resolve(target: str, weights: Path | None = None, weights_key: str | None = None) -> Target:
    """Build the network that target names, and load weights into it, if given.

    weights_key: which of several sets of weights in the file, as in weights.load_weights.

    Raises ExportErrors: UnknownTarget when it cannot be found or imported, FactoryFailed when it cannot be
    built, MissingExtra when it needs a package that is not installed, and those of models/weights.py. For a
    factory the current directory becomes importable.
    """
    found = _resolve_factory(target) if ":" in target or "." in target else _resolve_network(target)
    if weights is None:
        return found
    return replace(found, note=load_weights(found.module, weights, weights_key))


def _resolve_network(target: str) -> Target:
    entry = NETWORKS.get(target)
    if entry is None:
        raise UnknownTarget(_unknown_name(target))
    file = importlib.import_module(f"foldserve.models.{entry.file}")
    # Seeded, so that a network without trained weights has the same ones at every export, and the answers that
    # the documents show are those that a reader gets. The caller's generator is left as it was.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        module = getattr(file, entry.build)()
        example_inputs = getattr(file, entry.example_inputs)()
    return Target(
        name=target,
        module=module,
        example_inputs=example_inputs,
        dynamic_axes=getattr(file, "DYNAMIC_AXES", None),
        input_names=entry.input_names,
        source=target,
        labels=file.labels() if hasattr(file, "labels") else None,
    )


def _unknown_name(target: str) -> str:
    return (
        f"there is no network {target!r} in foldserve{did_you_mean(target, NETWORKS)}\n"
        "a network of your own is given as package.module:factory"
    )


def _resolve_factory(target: str) -> Target:
    module_name, _, attribute = target.partition(":")
    if not _is_dotted(module_name) or not _is_dotted(attribute):
        # A path is what the shell completes.
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        meant = f"{dotted}:{attribute or 'build'}" if _is_dotted(dotted) else "my_nets.resnet:build"
        raise UnknownTarget(
            f"{target!r} is not the name of a factory; expected package.module:factory, as {meant} for the function "
            f"{meant.partition(':')[2]} in {meant.partition(':')[0].replace('.', '/')}.py"
        )
    _make_current_directory_importable()
    module, example_inputs = _call(target, _find(target, module_name, attribute))
    if not example_inputs and isinstance(module, ImageInput) and module.geometry["size"] is not None:
        example_inputs = module.example_inputs()
    return Target(
        name=module_name.rpartition(".")[2]
        if attribute in ("build", "factory")
        else attribute.replace(".", "_"),
        module=module,
        example_inputs=example_inputs,
        dynamic_axes=None,
        input_names=None,
        source=target,
    )


def _make_current_directory_importable() -> None:
    """Put the current directory first on sys.path, as `python -m` does and a console script does not.

    It stays there: a network may import more when it runs.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _find(target: str, module_name: str, attribute: str) -> Any:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownTarget(_not_importable(target, module_name, error)) from error
    except ExportError:
        raise
    except Exception as error:  # user code: whatever it raises while it is imported
        raise UnknownTarget(
            f"{target!r}: importing {module_name} raised {type(error).__name__}: {error}; expected a module "
            f"that can be imported; try `python -c 'import {module_name}'`"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            expected = "expected a function there that takes no arguments and returns an nn.Module"
            raise UnknownTarget(
                f"{target!r}: {module_name} has no {attribute!r}{did_you_mean(name, dir(found), expected)}"
            )
        found = getattr(found, name)
    return found


def _not_importable(target: str, module_name: str, error: ModuleNotFoundError) -> str:
    missing = error.name or module_name
    package, _, last = missing.rpartition(".")
    # Python names the first part that is missing: its package is there.
    where = Path.cwd().joinpath(*package.split(".")) if package else Path.cwd()
    modules = [path.stem for path in where.glob("[!_.]*") if path.suffix in ("", ".py")]
    near = [f"{package}.{name}".strip(".") for name in similar(last, modules)]
    if missing != module_name and not module_name.startswith(missing + "."):
        otherwise = f"add it to {package}" if package else "install it beside foldserve"
        what = "does not exist" if package else "is not installed"
        return (
            f"{target!r}: {module_name} was found, but it imports {missing}, which {what}"
            f"{did_you_mean(missing, near, otherwise)}"
        )
    otherwise = f"expected a module in the current directory ({os.getcwd()}), on PYTHONPATH, or installed"
    return f"{target!r}: there is no module {missing}{did_you_mean(missing, near, otherwise)}"


def _is_dotted(text: str) -> bool:
    """Whether it is identifiers with dots between them."""
    return all(part.isidentifier() for part in text.split("."))


def _call(target: str, factory: Any) -> tuple[nn.Module, tuple[Any, ...] | dict[str, Any]]:
    if isinstance(factory, nn.Module):
        return factory, ()
    if not callable(factory):
        raise FactoryFailed(
            f"{target!r} is a {type(factory).__name__}; expected a function that takes no arguments and "
            "returns an nn.Module"
        )
    try:
        made = factory()
    except ExportError:
        raise
    except Exception as error:  # user code: whatever it raises
        raise FactoryFailed(
            f"{target!r} was called without arguments and raised {type(error).__name__}: {error}; expected "
            "it to return an nn.Module; where the class needs arguments, write a function that gives them"
        ) from error
    if isinstance(made, nn.Module):
        return made, ()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], _examples(target, made[1])
    raise FactoryFailed(
        f"{target!r} returned {_kind(made)}; expected an nn.Module, or a pair (module, example_inputs)"
    )


def _examples(target: str, given: Any) -> tuple[Any, ...] | dict[str, Any]:
    examples = (given,) if isinstance(given, Tensor | np.ndarray) else given
    # Something beside plain values; what exactly, models/export/network/example/example.py looks at.
    if any(not isinstance(leaf, _PLAIN_VALUES) for leaf in pytree.tree_leaves(examples)):
        if isinstance(examples, Mapping):
            return dict(examples)
        if isinstance(examples, (tuple, list)):
            return tuple(examples)
    raise FactoryFailed(
        f"{target!r} returned {_kind(given)} as example inputs; expected a tuple of tensors, one per input "
        "of the network, or a dict of them by name, dim 0 = rows"
    )


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(type(one).__name__ for one in value) + ")"
    return f"a {type(value).__name__}"
