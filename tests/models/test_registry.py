"""models/registry.py: names, factories of the user's own, and what each mistake is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from foldserve.models.errors import ExportError, FactoryFailed, UnknownTarget, WeightsDoNotFit
from foldserve.models.image_input import ImageInput
from foldserve.models.registry import available, resolve

ROOT = Path(__file__).resolve().parents[2]

FACTORIES = """
import torch
from torch import nn


class Plain(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)


class Group:
    @staticmethod
    def make():
        return Plain()


class NeedsArguments(nn.Linear):
    pass


ready = Plain()
number = 3


def build():
    return Plain()


def with_example():
    return Plain(), (torch.zeros(2, 2),)


def with_bare_example():
    return Plain(), torch.zeros(2, 2)


def with_nested_example():
    return Plain(), ({"pixels": torch.zeros(2, 2), "more": [torch.zeros(2, 3)]},)


def with_list_for_example():
    return Plain(), ([[0.0, 0.0]],)


def without_example():
    return Plain(), ()


def nothing():
    pass


def triple():
    return Plain(), (), {}


def broken():
    raise RuntimeError("no such file: weights.bin")
"""


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    """Be in a folder with the user's modules, and leave neither path nor modules behind."""
    (tmp_path / "user_nets").mkdir()
    (tmp_path / "user_nets" / "__init__.py").write_text("")
    (tmp_path / "user_nets" / "plain.py").write_text(FACTORIES)
    (tmp_path / "user_broken.py").write_text("raise OSError('the disk is gone')")
    (tmp_path / "user_syntax.py").write_text("def f(:")
    (tmp_path / "user_imports.py").write_text("import not_installed_anywhere.part")
    (tmp_path / "user_own_imports.py").write_text("import user_nets.plan")
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("user_") or name.partition(".")[0] == "models":
            del sys.modules[name]


def test_available_names_the_networks_of_the_issue():
    assert set(available()) >= {
        *("mlp", "convnet", "resnet18", "resnet34", "resnet50", "resnet_small", "mobilenet"),
        *("unet", "lstm", "transformer", "digits", "efficientnet_lite0"),
    }


def test_network_file_is_in_the_registry_and_registry_names_are_files():
    """A new network that nobody can ask for by name would be dead code."""
    from foldserve.models.registry import NETWORKS

    files = {path.stem for path in (ROOT / "models").glob("*.py") if "\ndef build" in path.read_text()}
    assert files == {entry.file for entry in NETWORKS.values()}


def test_name_resolves_to_its_network_with_rows_first_in_the_example():
    target = resolve("mlp")
    assert (target.name, target.source, target.dynamic_axes, target.input_names) == ("mlp", "mlp", None, None)
    (x,) = target.example_inputs
    assert target.module(x).shape == (2, 5)


def test_named_network_has_the_same_weights_each_time_and_leaves_the_generator_alone():
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    first, second = resolve("mlp"), resolve("mlp")
    assert torch.equal(torch.randn(3), expected)
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first.example_inputs[0], second.example_inputs[0])


def test_weights_are_loaded_into_a_named_network(tmp_path):
    given = resolve("mlp").module.state_dict()
    torch.save(given, tmp_path / "w.pt")
    loaded = resolve("mlp", tmp_path / "w.pt").module.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in given.items())
    with pytest.raises(WeightsDoNotFit, match="does not fit ConvNet"):
        resolve("convnet", tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet81", "did you mean resnet18?"),
        ("unt", "did you mean unet?"),
        ("zzz", "expected one of mlp, convnet, "),
    ],
)
def test_unknown_name_is_answered_with_the_one_that_was_meant_or_with_all(name, says):
    with pytest.raises(UnknownTarget) as caught:
        resolve(name)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"there is no network {name!r} in foldserve; {says}")
    assert second == "a network of your own is given as package.module:factory"


@pytest.mark.parametrize(
    ("attribute", "name", "examples"),
    [
        ("build", "plain", 0),
        ("Plain", "Plain", 0),
        ("Group.make", "Group_make", 0),
        ("ready", "ready", 0),
        ("with_example", "with_example", 1),
        ("with_bare_example", "with_bare_example", 1),
    ],
)
def test_factory_in_the_current_directory_is_found_and_called(user_modules, attribute, name, examples):
    target = resolve(f"user_nets.plain:{attribute}")
    assert isinstance(target.module, nn.Linear)
    assert (target.name, target.source) == (name, f"user_nets.plain:{attribute}")
    assert [tuple(x.shape) for x in target.example_inputs] == [(2, 2)] * examples


def test_nested_example_of_a_factory_is_kept_as_it_is(user_modules):
    (example,) = resolve("user_nets.plain:with_nested_example").example_inputs
    assert example["pixels"].shape == (2, 2)
    assert example["more"][0].shape == (2, 3)


def test_weights_are_loaded_into_a_module_of_the_users(user_modules):
    torch.save({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "w.pt")
    assert resolve("user_nets.plain:build", Path("w.pt")).module.weight.sum() == 6


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("user_nets.none:build", r"no module user_nets\.none; expected a module in the current directory"),
        ("user_nets.plan:build", r"no module user_nets\.plan; did you mean user_nets\.plain\?"),
        ("usr_nets.plain:build", r"no module usr_nets; did you mean user_nets\?"),
        (
            "user_own_imports:build",
            r"it imports user_nets\.plan, which does not exist; did you mean user_nets\.plain\?",
        ),
        (
            "user_nets.plain",
            "is not the name of a factory; expected package.module:factory, as user_nets.plain:build",
        ),
        ("nowhere:build", r"no module nowhere; expected a module in the current directory"),
        ("user_nets.plain:biuld", r"user_nets\.plain has no 'biuld'; did you mean build\?"),
        ("user_nets.plain:Group.none", r"has no 'Group\.none'"),
        ("user_broken:build", "importing user_broken raised OSError: the disk is gone"),
        ("user_syntax:build", "importing user_syntax raised SyntaxError"),
        ("user_imports:build", "was found, but it imports not_installed_anywhere, which is not installed"),
        (
            "./user_nets/plain.py:make",
            "is not the name of a factory; expected .*, as user_nets.plain:make for",
        ),
        ("user_nets.plain:", "is not the name of a factory"),
        (":build", "is not the name of a factory"),
        ("a:b:c", "is not the name of a factory"),
    ],
)
def test_factory_that_cannot_be_found_is_told_where_and_what_was_expected(user_modules, target, message):
    with pytest.raises(UnknownTarget, match=message):
        resolve(target)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("number", "is a int; expected a function that takes no arguments"),
        ("nothing", "returned a NoneType; expected an nn.Module"),
        ("triple", r"returned \(Plain, tuple, dict\); expected an nn.Module, or a pair"),
        ("broken", "raised RuntimeError: no such file: weights.bin"),
        ("NeedsArguments", "raised TypeError: .*write a function that gives them"),
        ("with_list_for_example", r"returned \(list\) as example inputs; expected a tuple of tensors"),
        ("without_example", r"returned \(\) as example inputs; expected a tuple of tensors"),
    ],
)
def test_factory_that_gives_no_network_is_told_what_it_gave(user_modules, attribute, message):
    with pytest.raises(FactoryFailed, match=message):
        resolve(f"user_nets.plain:{attribute}")


NET = """
from torch import nn
import models.parts
class Net(nn.Linear):
    def __init__(self):
        super().__init__(models.parts.SIZE, 3)
def build():
    from models.late import Late
    return Late()
"""


@pytest.fixture
def own_models(user_modules):
    """The user's project has a package `models`, with file names that foldserve's has too."""
    folder = user_modules / "models"
    folder.mkdir()
    (folder / "__init__.py").write_text("from models.resnet import Net\n")
    (folder / "resnet.py").write_text(NET)
    (folder / "parts.py").write_text("SIZE = 7\n")
    (folder / "late.py").write_text("from models import Net\nclass Late(Net):\n    pass\n")
    (user_modules / "user_own.py").write_text("from models import Net\ndef build():\n    return Net()\n")
    (user_modules / "user_image.py").write_text(
        "from torch import nn\nfrom foldserve.models.image_input import ImageInput\n"
        "def build():\n    return ImageInput(nn.Flatten(), 0.0, 1.0, size=4)\n"
    )
    (user_modules / "user_both.py").write_text(
        "from models import Net\nfrom foldserve.models.image_input import ImageInput\n"
        "def build():\n    return ImageInput(Net(), 0.0, 1.0, size=4)\n"
    )
    (user_modules / "user_inner.py").write_text("from models import Net\nimport models.weights\n")
    return user_modules


@pytest.mark.parametrize("target", ["models.resnet:build", "models:Net", "user_own:build"])
def test_package_of_the_users_that_is_called_models_is_the_one_that_is_meant(own_models, target):
    module = resolve(target).module
    assert module.in_features == 7
    assert module(torch.zeros(2, 7)).shape == (2, 3)


def test_image_input_is_foldserves_beside_a_package_of_the_users_called_models(own_models):
    target = resolve("user_image:build")
    assert isinstance(target.module, ImageInput)
    assert tuple(target.example_inputs[0].shape) == (2, 4, 4, 3)
    assert resolve("resnet_small").module.__class__.__module__ == "foldserve.models.resnet"


def test_one_file_imports_from_a_package_models_of_the_users_and_the_image_input_of_foldserve(own_models):
    module = resolve("user_both:build").module
    assert isinstance(module, ImageInput)
    assert module.network.in_features == 7


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("models.nope:build", r"there is no module models\.nope; expected a module in the current directory"),
        ("models.resnet:nope", r"models\.resnet has no 'nope'"),
        (
            "user_inner:build",
            r"it imports models\.weights, which does not exist; add it to models",
        ),
    ],
)
def test_what_is_in_no_package_called_models_is_told(own_models, target, message):
    with pytest.raises(UnknownTarget, match=message):
        resolve(target)


def test_command_is_found_where_pythonpath_leads_to_another_package_called_models(own_models):
    done = subprocess.run(
        [sys.executable, "-c", "from foldserve.service.cli import main; main(['export', 'nope'])"],
        cwd=own_models,
        env={**os.environ, "PYTHONPATH": str(own_models)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.startswith("foldserve export: there is no network 'nope'"), done.stderr


def test_error_that_a_factory_raises_on_purpose_keeps_its_words(user_modules):
    raising = "def build():\n    raise MissingExtra('install the thing')\n"
    (user_modules / "user_words.py").write_text(
        "from foldserve.models.errors import MissingExtra\n" + raising
    )
    with pytest.raises(ExportError, match=r"^install the thing$"):
        resolve("user_words:build")


def test_current_directory_is_importable_from_a_console_script(user_modules):
    """A console script has its own folder first on sys.path, and not the current directory."""
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.argv[1])]\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from foldserve.models.registry import resolve; print(type(resolve('user_nets.plain:build').module).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(user_modules)],
        cwd=user_modules,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "Plain\n", done.stderr
