"""Load a file of weights into a network, strictly: every name of the network and of the file's weights is used.

What the file is, is weights_file.py's; where in it the weights are, checkpoint.py's. What had to be done to the names
is returned in one line, for the user to read.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foldserve.models.checkpoint import Found, choose, fits, misfits, search, some
from foldserve.models.errors import WeightsDoNotFit, WeightsUnreadable
from foldserve.models.weights_file import SAVE, read_weights


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> str:
    """Copy the weights in path into module, in place; floats are cast to the dtype of the module.

    A training checkpoint is looked through, and the names that wrappers and trainers add are taken off (checkpoint.py).
    A name may be missing where torch itself can do without it: the second name of a tied weight, and
    num_batches_tracked in files from before torch 0.4. Weights on the meta device become the file's.

    Args:
        key: where in a checkpoint to look, as "ema" or "ema.module", when several places fit.
    Returns: one line that says what was taken and renamed; "" where the file has the network's own names.
    Raises:
        WeightsUnreadable: there is no such file, it is damaged, or it holds something else than weights.
        UnsafeWeights: the file is a pickle of more than plain data; it was not run.
        WeightsDoNotFit: lists every missing, unexpected and mis-shaped name, or the places that fit alike. The
            module is as it was.
    """
    content = read_weights(path)
    wanted = module.state_dict()
    places = search(_tree(content, path), wanted, _tied(wanted))
    if key is not None:
        places = _under(places, key, path)
    if not places:
        raise WeightsUnreadable(
            f"the weights file {path} holds no tensors under names, but {_described(content)}; expected a state "
            f"dict, or a checkpoint that has one; write it with {SAVE}"
        )
    fitting = [place for place in places if fits(place, wanted)]
    if not fitting and (wanted or places[0].unexpected):
        raise WeightsDoNotFit(_not_fitting(module, path, places[0]))
    chosen, others = choose(fitting) if fitting else (places[0], [])
    if chosen is None:
        raise WeightsDoNotFit(
            f"the weights file {path} holds several weights that fit {type(module).__name__}: "
            f"{some(sorted(other.place for other in others))}; choose one: --weights-key {others[0].place}"
        )
    _copy(module, wanted, chosen, path)
    partial = [place for place in places if place.averaged and place.names and place not in fitting]
    return _told(chosen, others, partial, path)


def _tree(content: Any, path: Path) -> Mapping[Any, Any]:
    if isinstance(content, Mapping):
        return content
    raise WeightsUnreadable(
        f"the weights file {path} holds a {type(content).__name__}; expected names with tensors; "
        f"write it with {SAVE}"
    )


def _under(places: list[Found], key: str, path: Path) -> list[Found]:
    chosen = [place for place in places if place.place == key or place.place.startswith(f"{key}.")]
    if not chosen:
        known = sorted({place.place.partition(".")[0] for place in places if place.place})
        there = f"it has {some(known)}" if known else "its names are the network's own"
        raise WeightsDoNotFit(f"the weights file {path} has nothing under {key!r} (--weights-key); {there}")
    return chosen


def _copy(module: nn.Module, wanted: Mapping[str, Any], place: Found, path: Path) -> None:
    """Load what was found. Raises: WeightsDoNotFit for what a module with its own way of loading does not take."""
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in wanted.items()}
    # Where weights are on the meta device there is nothing to copy into: they become the file's tensors.
    hollow = any(isinstance(value, Tensor) and value.is_meta for value in wanted.values())
    weights = place.weights()
    if hollow:
        weights = {name: value.to(wanted[name].dtype) for name, value in weights.items()}
    try:
        report = module.load_state_dict(_with_versions(weights, place), strict=False, assign=hollow)
    except RuntimeError as error:
        problems = [str(error)]
    else:
        tied = _tied(module.state_dict())
        problems = [
            f"missing: {name}"
            for name in report.missing_keys
            if name in place.missing or (name not in tied and not name.endswith("num_batches_tracked"))
        ]
        problems += [f"unexpected: {name}" for name in report.unexpected_keys]
    if problems:
        module.load_state_dict(before, strict=False)
        raise WeightsDoNotFit(_problems(module, path, problems))


def _with_versions(weights: Mapping[str, Any], place: Found) -> "OrderedDict[str, Any]":
    """The weights with the versions of their modules, as torch.save writes them: old ones are converted by them."""
    state = OrderedDict(weights)
    versions = place.versions
    if versions is not None:
        owners = {name.rpartition(".")[0]: there.rpartition(".")[0] for name, there in place.names.items()}
        state._metadata = {here: versions[there] for here, there in owners.items() if there in versions}  # type: ignore[attr-defined]
    return state


def _tied(state: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Of each name whose tensor has several: all of them. The tensor is filled under any."""
    groups: dict[tuple[Any, ...], set[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            storage = (
                tensor.untyped_storage()._cdata,
                tensor.storage_offset(),
                tensor.shape,
                tensor.stride(),
            )
            groups.setdefault(storage, set()).add(name)
    return {name: frozenset(names) for names in groups.values() if len(names) > 1 for name in names}


def _told(chosen: Found, others: list[Found], partial: list[Found], path: Path) -> str:
    parts = [chosen.told()]
    if others:
        places = [other.place or "the names themselves" for other in others]
        parts.append(f"{some(places)} would fit too (--weights-key chooses)")
    if partial and not chosen.averaged:
        lack = partial[0].missing + partial[0].unexpected
        parts.append(f"not the averaged weights in {partial[0].place!r}, which do not fit: {some(lack)}")
    told = "; ".join(part for part in parts if part)
    return f"the weights file {path}: {told}" if told else ""


def _not_fitting(module: nn.Module, path: Path, place: Found) -> str:
    wanted = module.state_dict()
    problems = misfits(place, wanted)
    problems += [f"missing: {name}" for name in place.missing]
    problems += [f"unexpected: {name}" for name in place.unexpected]
    return _problems(module, path, problems, f" (looked at {place.place!r})" if place.place else "")


def _problems(module: nn.Module, path: Path, problems: list[str], where: str = "") -> str:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = "\n  ".join(problems)
    return (
        f"the weights file {path}{where} does not fit {type(module).__name__}, {count}:\n  {lines}\n"
        "Export the network that these weights were trained for, or save its state dict again."
    )


def _described(content: Mapping[Any, Any]) -> str:
    kinds = [f"{name!r} ({type(value).__name__})" for name, value in list(content.items())[:5]]
    return ", ".join(kinds) or "nothing"
