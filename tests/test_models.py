"""Where networks come from: every spelling of --model, what each source refuses, and weights out of files."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from runs import Recorder, settings, write_images
from torch import Tensor, nn

from prunetrain import models, zoo
from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.models import torchvision_models
from prunetrain.models.constructing import returned_class
from prunetrain.models.weights import Mismatch, load_weights
from prunetrain.paths import RunPaths
from prunetrain.training.run import resume_run, run_name, start_run

NETS = Path(__file__).parent / "networks_of_users"


def build(spec: str, *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 4, **model_args: Any) -> nn.Module:
    return models.build(spec, input_shape=shape, num_classes=classes, model_args=model_args)


def refusal(spec: str, **named: Any) -> str:
    """The one line that a network is refused with."""
    with pytest.raises(ConfigError) as error:
        build(spec, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(model: nn.Module, *shape: int) -> tuple[int, ...]:
    with torch.inference_mode():
        return tuple(model.eval()(torch.zeros(shape)).shape)


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Words and names


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("resnet20", "resnet20"),
        ("mobilenet-v1-0.75", "mobilenet-v1-0.75"),
        ("torchvision:mobilenet_v2", "mobilenet_v2"),
        ("timm:resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("my_net.py:Net", "Net"),
        ("../a b/my_net.py:make_net", "make_net"),
        ("nets/my_net.py", "my_net"),
        ("C:\\nets\\my_net.py:_Net", "Net"),
        ("net.py:Größe", "Gr-e"),
        ("net.py:ß", "network"),
        (":", "network"),
        ("net.py:" + "N" * 99, "N" * 60),
    ],
)
def test_runs_are_named_by_the_network_without_its_source(spec: str, name: str) -> None:
    assert models.short_name(spec) == name
    assert run_name(TrainConfig(model=spec)) == f"{name}-digits"


@given(st.text(max_size=120), st.sampled_from(("digits", "fashion-mnist")))
def test_every_word_makes_a_legal_name(spec: str, dataset: str) -> None:
    assert len(RunPaths(Path(), run_name(TrainConfig(model=spec, dataset=dataset))).name) < 80


def test_given_names_go_first() -> None:
    assert run_name(TrainConfig(model="my_net.py:Net", name="mine")) == "mine"


def test_names_do_not_import_torch() -> None:
    code = "import sys; from prunetrain import models; models.described(); models.short_name('a.py:B'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_zoo_is_built_as_before() -> None:
    assert list(models.described()) == [*zoo.described(), *models.MODEL_FORMATS]
    assert sorted(zoo.described()) == list(zoo.names())
    torch.manual_seed(3)
    expected = zoo.build("resnet20", input_shape=(1, 8, 8), num_classes=4).state_dict()
    torch.manual_seed(3)
    assert same(build("resnet20", shape=(1, 8, 8)).state_dict(), expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet21", "unknown model 'resnet21': did you mean resnet32 or resnet20 or resnet18?"),
        ("mobilenet_v2", "unknown model 'mobilenet_v2': did you mean torchvision:mobilenet_v2?"),
        ("torchvison:resnet18", "unknown source of models 'torchvison': did you mean torchvision?"),
        ("my_net:Net", "unknown source of models 'my_net': choose from FILE.py, timm, torchvision"),
        (":resnet18", "unknown source of models '': choose from FILE.py, timm, torchvision"),
    ],
)
def test_unknown_words(spec: str, message: str) -> None:
    assert refusal(spec) == message


def test_zoo_takes_no_arguments() -> None:
    assert refusal("resnet20", width=2) == "resnet20 is a network of the zoo and takes no --model-arg: leave width out"


# torchvision


def test_torchvision_network_is_torchvisions_own() -> None:
    torch.manual_seed(3)
    expected = torchvision.models.resnet18(num_classes=4).state_dict()
    torch.manual_seed(3)
    assert same(build("torchvision:resnet18").state_dict(), expected)


@pytest.mark.parametrize(
    ("spec", "side", "model_args"),
    [
        ("torchvision:vit_b_32", 64, {}),  # must know the side of the images
        ("torchvision:googlenet", 32, {"aux_logits": False}),  # warns when it is built without init_weights
        ("torchvision:mobilenet_v3_small", 32, {"dropout": 0.5}),
    ],
)
def test_torchvision_networks_fit_the_images(spec: str, side: int, model_args: dict[str, Any]) -> None:
    assert logits(build(spec, shape=(3, side, side), **model_args), 1, 3, side, side) == (1, 4)


def test_model_arg_goes_over_what_the_data_says() -> None:
    model = build("torchvision:mobilenet_v2", width_mult=0.5, num_classes=7)
    assert logits(model, 1, 3, 32, 32) == (1, 7)
    assert model.features[1].conv[0][0].in_channels == 16


def test_every_torchvision_network_says_what_its_constructor_takes() -> None:
    assert len(torchvision_models.names()) >= 80
    assert all(returned_class(torchvision.models.get_model_builder(name)) for name in torchvision_models.names())


@pytest.mark.parametrize(
    ("spec", "named", "message"),
    [
        ("torchvision:resnet19", {}, "unknown torchvision model 'resnet19': did you mean resnet18 or "),
        ("torchvision:", {}, "unknown torchvision model '': choose from alexnet, "),
        ("torchvision:fcn_resnet50", {}, "unknown torchvision model 'fcn_resnet50': did you mean "),
        (
            "torchvision:resnet18",
            {"shape": (1, 8, 8)},
            "torchvision:resnet18 takes images of 3 channels, not of 1: choose a network of the zoo ",
        ),
        (
            "torchvision:resnet18",
            {"widht": 2},
            "torchvision:resnet18 takes no argument 'widht'; it takes num_classes, zero_init_residual, ",
        ),
        ("torchvision:convnext_tiny", {"foo": 2}, "torchvision:convnext_tiny takes no argument 'foo'; it takes stochastic_depth_prob, "),
        ("torchvision:resnet18", {"block": 2}, "torchvision:resnet18 cannot be built: TypeError: "),
        ("torchvision:resnet18", {"width_per_group": "a"}, "torchvision:resnet18 cannot be built: ValueError: BasicBlock only supports "),
        (
            "torchvision:resnet18",
            {"weights": "DEFAULT"},
            "torchvision:resnet18 takes no --model-arg weights: use --weights pretrained, or --weights FILE",
        ),
        ("torchvision:vit_b_16", {"shape": (3, 32, 48)}, "torchvision:vit_b_16 takes square images, not 32x48: "),
        (
            "torchvision:maxvit_t",
            {"shape": (3, 64, 96)},
            "torchvision:maxvit_t cannot be built: ValueError: Input size (16, 24) of block 0 ",
        ),
        ("torchvision:vit_b_16", {"shape": (3, 33, 33)}, "torchvision:vit_b_16 cannot be built: AssertionError: Input shape indivisible"),
    ],
)
def test_torchvision_refuses(spec: str, named: dict[str, Any], message: str) -> None:
    assert refusal(spec, **named).startswith(message)


# timm


@pytest.mark.parametrize(
    ("spec", "shape", "model_args"),
    [
        ("timm:resnet10t", (1, 8, 8), {}),
        ("timm:resnet10t.c3_in1k", (3, 64, 64), {"drop_rate": 0.5}),
        ("timm:vit_tiny_patch16_224", (3, 32, 64), {"depth": 1}),  # must know the sides of the images
        ("timm:vit_tiny_patch16_224", (2, 224, 224), {"depth": 1}),
        ("timm:botnet26t_256", (3, 64, 64), {}),  # has an img_size without a default
    ],
)
def test_timm_networks_fit_the_images(spec: str, shape: tuple[int, int, int], model_args: dict[str, Any]) -> None:
    pytest.importorskip("timm", reason="timm is an optional extra and not installed")
    assert logits(build(spec, shape=shape, **model_args), 1, *shape) == (1, 4)


@pytest.mark.parametrize(
    ("spec", "named", "message"),
    [
        ("timm:resnet10", {}, "unknown timm model 'resnet10': did you mean resnet10t or "),
        ("timm:#", {}, "unknown timm model '#': timm.list_models() lists them"),
        ("timm:hf-hub:timm/resnet10t.c3_in1k", {}, "unknown timm model 'hf-hub:timm/resnet10t.c3_in1k': "),  # would download
        ("timm:resnet10t.c3_in1", {}, "unknown set of weights of timm:resnet10t 'c3_in1': did you mean c3_in1k?"),
        (
            "timm:resnet10t",
            {"pretrained": True},
            "timm:resnet10t takes no --model-arg pretrained: use --weights pretrained, or --weights FILE",
        ),
        ("timm:resnet10t", {"widht": 2}, "timm:resnet10t takes no argument 'widht'; it takes num_classes, in_chans, "),
        ("timm:vit_tiny_patch16_224", {"embed_dim": 7}, "timm:vit_tiny_patch16_224 cannot be built: AssertionError: "),
    ],
)
def test_timm_refuses(spec: str, named: dict[str, Any], message: str) -> None:
    pytest.importorskip("timm", reason="timm is an optional extra and not installed")
    assert refusal(spec, **named).startswith(message)


def test_without_timm_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    install = "pip install 'prunetrain[timm]', or pip install timm"
    assert refusal("timm:resnet18") == f"timm:resnet18 needs timm, which is not installed: {install}"


# Own files


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_own_class_gets_arguments_shape_and_classes() -> None:
    model = build(f"{NETS}/my_net.py:Net", shape=(2, 8, 8), width=4)
    assert type(model).__name__ == "Net"
    assert logits(model, 1, 2, 8, 8) == (1, 4)
    assert model.stem[0].weight.shape == (4, 2, 3, 3)
    assert logits(build(f"{NETS}/my_net.py:Net", shape=(2, 8, 8), num_classes=9), 1, 2, 8, 8) == (1, 9)


def test_own_function_gets_only_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "net.py",
        """
from torch import nn

def plain(): return nn.Linear(2, 3)
def sized(num_classes, *, features=5): return nn.Linear(features, num_classes)
def forwarding(**named): return nn.Linear(**named)
ready = nn.Linear(4, 4)
number = 3
def wrong(): return 3
def failing(num_classes):
    return nn.Linear(num_classes, 'a')
def strict(width, depth, *, num_classes): return nn.Linear(width, depth)
def leaving(): raise SystemExit(1)
def counted(class_num=100): return nn.Linear(2, class_num)
""",
    )
    assert build("net.py:counted").out_features == 4
    assert build("net.py:counted", class_num=7).out_features == 7
    assert build("net.py:plain").out_features == 3
    assert (build("net.py:sized").in_features, build("net.py:sized", features=2).in_features) == (5, 2)
    assert build("net.py:forwarding", in_features=1, out_features=2).out_features == 2
    assert build("net.py:ready").in_features == 4
    assert build("./net.py:strict", width=2, depth=3).out_features == 3
    refusals = {
        ("plain", "width"): "net.py:plain takes no argument 'width'; it takes none",
        ("sized", "width"): "net.py:sized takes no argument 'width'; it takes num_classes, features",
        ("forwarding", "width"): "net.py:forwarding takes no argument 'width'; it takes none",
        ("ready", "width"): "net.py:ready is a network already and takes no --model-arg: leave width out, or name its class",
        ("number", ""): "net.py:number is a int: name a class or function that makes a network",
        ("wrong", ""): "net.py:wrong makes a int, not a torch.nn.Module: name a network's class, or a function that returns one",
        ("strict", ""): "net.py:strict needs width and depth: give --model-arg width=VALUE --model-arg depth=VALUE",
        ("strict", "width"): "net.py:strict needs depth: give --model-arg depth=VALUE",
        ("sizd", ""): "unknown name in net.py 'sizd': did you mean sized?",
        ("leaving", ""): f"net.py:leaving cannot be built: {tmp_path}/net.py:13: SystemExit: 1",
    }
    for (name, argument), message in refusals.items():
        assert refusal(f"net.py:{name}", **({argument: 2} if argument else {})) == message
    assert refusal("net.py:failing").startswith(f"net.py:failing cannot be built: {tmp_path}/net.py:11: TypeError: ")
    assert refusal("net.py").startswith("net.py: name the network in it, such as net.py:counted")


LAZY = """
from torch import nn

class Lazy(nn.Module):
    def __init__(self, num_classes, fails=False):
        super().__init__()
        self.fails = fails
        self.stem = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d().eval())
        self.head = nn.LazyLinear(num_classes)

    def forward(self, x):
        if self.fails: raise ValueError("no images today")
        assert not self.training
        return self.head(self.stem(x).flatten(1))

ready = Lazy(4)
"""


@pytest.mark.parametrize("name", ["Lazy", "ready"])
def test_lazy_layers_get_their_weights(name: str, tmp_path: Path) -> None:
    model = build(f"{write(tmp_path / 'net.py', LAZY)}:{name}", shape=(2, 8, 8))
    assert (model.stem[0].in_channels, model.stem[1].num_features, model.head.in_features) == (2, 4, 144)
    assert (model.training, model.stem.training, model.stem[1].training) == (True, True, False)
    assert torch.equal(model.stem[1].running_mean, torch.zeros(4))


def test_lazy_layers_of_a_network_that_fails(tmp_path: Path) -> None:
    file = write(tmp_path / "net.py", LAZY)
    message = f"{file}:Lazy has lazy layers and fails with its first images, of shape 2x8x8: {file}:12: ValueError: no images today"
    assert refusal(f"{file}:Lazy", shape=(2, 8, 8), fails=True) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nimport nonsense_", "net.py:2: ModuleNotFoundError: No module named 'nonsense_'"),
        ("def net(:\n", "net.py:1: invalid syntax"),
        ("1 / 0", "net.py:1: ZeroDivisionError: division by zero"),
        ("import sys\n\nsys.exit('no\\nway')", "net.py:3: SystemExit: no way"),
        ("import neighbour", "neighbour.py:2: ValueError: first line second line"),
        ("import sys\nsys.path[:0] = [sys.path[0] + '/site-packages']\nimport installed", "net.py:3: ValueError: of a package"),
    ],
)
def test_file_that_fails_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    file = write(tmp_path / "net.py", text)
    write(tmp_path / "neighbour.py", "\nraise ValueError('first line\\nsecond line')")
    write(tmp_path / "site-packages" / "installed.py", "raise ValueError('of a package')")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert refusal(f"{file}:Net") == f"{file} cannot be imported: {tmp_path}/{message}"


def test_file_that_is_none(tmp_path: Path) -> None:
    assert refusal(f"{tmp_path}/net.py:Net") == f"{tmp_path}/net.py: no such file"
    write(tmp_path / "empty.py", "from torch.nn import Linear")
    assert refusal(f"{tmp_path}/empty.py:Net") == f"{tmp_path}/empty.py defines no class or function: name a file with a network in it"


@pytest.mark.parametrize(
    "line", ["from .parts import SIZE", "from ..inner.parts import SIZE", "from package_of_users.inner.parts import SIZE"]
)
def test_a_file_of_a_package_imports_its_other_parts(line: str, tmp_path: Path) -> None:
    for size in (3, 5):
        package = tmp_path / str(size) / "package_of_users"
        for folder in (package, package / "inner"):
            write(folder / "__init__.py", "import nonsense_" if folder == package and "package" not in line else "")
        write(package / "inner" / "parts.py", f"SIZE = {size}")
        write(package / "inner" / "net.py", f"from torch import nn\n{line}\n\ndef make(): return nn.Linear(SIZE, 1)")
        write(package / "inner" / "__init__.py", "from .net import make")
    path = list(sys.path)
    for name in ("net.py", "__init__.py"):
        assert [build(f"{tmp_path}/{size}/package_of_users/inner/{name}:make").in_features for size in (3, 5, 3)] == [3, 5, 3]
    assert sys.path == path


INITS = {
    "a name": "SIZE = 3",
    "a name of another part": "from .parts import SIZE",
    "a circle": "SIZE = 3\nfrom .net import make",
}


@pytest.mark.parametrize("init", INITS)
def test_a_file_of_a_package_imports_names_of_its_init_file(init: str, tmp_path: Path) -> None:
    package = tmp_path / "package_of_users"
    write(package / "__init__.py", INITS[init])
    write(package / "parts.py", "SIZE = 3")
    file = write(package / "net.py", "from torch import nn\nfrom . import parts, SIZE\n\ndef make(): return nn.Linear(SIZE, parts.SIZE)")
    for _ in range(2):
        assert build(f"{file}:make").weight.shape == (3, 3)


def test_an_init_file_does_not_run_once_the_file_is_imported(tmp_path: Path) -> None:
    write(tmp_path / "package_of_users" / "__init__.py", "import nonsense_")
    file = write(tmp_path / "package_of_users" / "net.py", "from torch import nn\n\ndef make(): return nn.Linear(3, 1)")
    build(f"{file}:make")
    places = [module for module in sys.modules.values() if str(tmp_path / "package_of_users") in vars(module).get("__path__", [])]
    assert len(places) == 1
    assert not hasattr(places[0], "SIZE")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("", "ImportError: cannot import name 'SIZE' from"),
        ("import nonsense_", "No module named 'nonsense_'"),
        ("SIZE = 1 / 0", "division by zero"),
    ],
)
def test_an_init_file_without_the_name_is_refused(init: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "package_of_users" / "__init__.py", init)
    file = write(tmp_path / "package_of_users" / "net.py", "from . import SIZE")
    assert message in refusal(f"{file}:make")


def test_a_package_that_is_named_torch(tmp_path: Path) -> None:
    write(tmp_path / "torch" / "__init__.py", "")
    file = write(tmp_path / "torch" / "net.py", "import torch\n\ndef make(): return torch.nn.Linear(3, 1)")
    assert build(f"{file}:make").in_features == 3


def test_a_relative_import_needs_no_init_file(tmp_path: Path) -> None:
    write(tmp_path / "parts.py", "SIZE = 3")
    file = write(tmp_path / "net.py", "from torch import nn\nfrom .parts import SIZE\n\ndef make(): return nn.Linear(SIZE, 1)")
    assert build(f"{file}:make").in_features == 3


def test_two_files_have_neighbours_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("parts_of_users")  # some library that is loaded already, and that goes on using its module
    library.__file__ = str(tmp_path / "site" / "parts_of_users.py")
    monkeypatch.setitem(sys.modules, "parts_of_users", library)
    path = list(sys.path)
    for size in (3, 5):
        write(tmp_path / str(size) / "parts_of_users.py", f"SIZE = {size}")
        write(
            tmp_path / str(size) / "net.py",
            """
from torch import nn
from parts_of_users import SIZE
from dataclasses import dataclass

@dataclass
class Settings:
    size: "int" = SIZE

def make(): return nn.Linear(Settings().size, 1)
""",
        )
    assert [build(f"{tmp_path}/{size}/net.py:make").in_features for size in (3, 5, 3)] == [3, 5, 3]
    assert sys.modules["parts_of_users"] is library
    assert sys.path == path


# Weights


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)


class Toy(nn.Module):
    """Names of all kinds: nested, in a Sequential, a parameter of its own."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Block())
        self.scale = nn.Parameter(torch.ones(2))
        self.fc = nn.Linear(2, classes)


NAMES = ["scale", "layer1.0.conv1.weight", *(f"layer1.0.bn1.{word}" for word in "weight bias running_mean running_var".split())]
NAMES += ["fc.weight", "fc.bias"]


def numbered() -> dict[str, Tensor]:
    """A state dict of Toy in which every number is another one."""
    state = Toy().state_dict()
    first = 0
    for name, tensor in state.items():
        state[name] = torch.arange(first, first + tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
        first += tensor.numel()
    return state


def flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names as a network file has them."""
    return {"_".join([*name.split(".")[:-2], ".".join(name.split(".")[-2:])]): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        numbered(),
        flat(numbered()),
        {"state_dict": numbered(), "epoch": 3},
        {"model": numbered(), "optimizer": {}, "args": None},
        {"model_state_dict": flat(numbered())},
        {f"module.{name}": tensor for name, tensor in numbered().items()},
        {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in numbered().items()}},
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in numbered().items()},
        {name: tensor for name, tensor in numbered().items() if "tracked" not in name},
    ],
    ids=["plain", "flat", "state_dict", "model", "flat inside", "ddp", "compiled ddp", "half", "without counters"],
)
def test_weights_are_found_under_every_name(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "w.pt")
    model = Toy()
    parameters = dict(model.named_parameters())
    report = load_weights(model, tmp_path / "w.pt")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert sorted(report.loaded) == sorted(NAMES)
    assert report.lines() == ["weights: 8 of the network's 8 tensors are in the file"]
    left, right = model.state_dict(), numbered()
    assert all(torch.equal(left[name], right[name]) and left[name].dtype == torch.float32 for name in NAMES)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_flat_names_that_two_tensors_have_are_not_guessed(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "a_b": nn.Linear(1, 1), "c": nn.Linear(1, 1)})
    torch.save({"a_b.weight": torch.tensor([[7.0]]), "c.weight": torch.tensor([[8.0]])}, tmp_path / "w.pt")
    report = load_weights(model, tmp_path / "w.pt")
    assert report.loaded == ("a_b.weight", "c.weight")
    assert report.missing == ("a.b.weight", "a.b.bias", "a_b.bias", "c.bias")
    torch.save({"x": torch.zeros(1), "a.b_bias": torch.zeros(1), "c.weight": torch.zeros(1, 1)}, tmp_path / "w.pt")
    assert load_weights(model, tmp_path / "w.pt").unexpected == ("x", "a.b_bias")


def test_layers_of_a_sequential_have_their_names_in_network_files(tmp_path: Path) -> None:
    torch.save({"layer_0.weight": torch.tensor([[7.0]]), "layer_0.bias": torch.tensor([8.0])}, tmp_path / "w.pt")
    model = nn.Sequential(nn.Linear(1, 1))
    load_weights(model, tmp_path / "w.pt")
    assert (model[0].weight.item(), model[0].bias.item()) == (7, 8)


def test_what_does_not_fit_is_told_and_left_alone(tmp_path: Path) -> None:
    state = numbered()
    del state["scale"]
    state |= {f"aux.{number}": torch.zeros(1) for number in range(7)}
    torch.save(state, tmp_path / "w.pt")
    model = Toy(classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, tmp_path / "w.pt")
    assert report.mismatched == (Mismatch("fc.weight", (4, 2), (3, 2)), Mismatch("fc.bias", (4,), (3,)))
    assert report.lines() == [
        "weights: 5 of the network's 8 tensors are in the file",
        "  not saved, newly initialised: scale",
        "  of another shape, newly initialised: fc.weight (saved as 3x2, here 4x2), fc.bias (saved as 3, here 4)",
        "  not in the network, left out: aux.0, aux.1, aux.2, aux.3, aux.4 and 2 more, 7 in all",
    ]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ("scale", "fc.weight", "fc.bias"))
    assert torch.equal(after["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv9.weight": torch.zeros(1)},
            "no weights of this network: it has conv9.weight, but the network has scale, layer1.0.conv1.weight",
        ),
        (
            {"fc.weight": torch.zeros(9, 2)},
            "no weights of this network: all have other shapes, such as fc.weight (saved as 9x2, here 3x2)",
        ),
        (
            {"layer1.0.bn1.num_batches_tracked": torch.tensor(0)},
            "no weights of this network: it has only counters, but the network has scale, ",
        ),
        ({"epoch": 3}, "holds no state dict: write one with torch.save(model.state_dict(), FILE)"),
        ([torch.zeros(1)], "holds no state dict: write one with "),
        (
            nn.Linear(1, 1),
            "damaged, or not a file of weights (it holds more than tensors and plain values: 'torch.nn.modules.linear.Linear'): ",
        ),
    ],
)
def test_file_without_weights_of_the_network(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as error:
        load_weights(Toy(), tmp_path / "w.pt")
    assert str(error.value).startswith(f"{tmp_path}/w.pt: {message}")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_file_that_is_no_file_of_weights(tmp_path: Path, suffix: str) -> None:
    if suffix == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is optional and not installed")
    path = tmp_path / f"w.{suffix}"
    with pytest.raises(ConfigError, match=r"no such file of weights$"):
        load_weights(Toy(), path)
    for damaged in (b"", b"not weights", bytes(1000)):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r": damaged, or "):
            load_weights(Toy(), path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"is a folder: name a file of weights in it$"):
        load_weights(Toy(), path)


def test_safetensors(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="safetensors is optional and not installed")
    files.save_file(flat(numbered()), tmp_path / "w.safetensors")
    model = Toy()
    assert len(load_weights(model, tmp_path / "w.safetensors").loaded) == 8
    assert same(model.state_dict(), numbered())


def test_without_safetensors_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    write(tmp_path / "w.safetensors", "")
    message = r"w\.safetensors needs safetensors, which is not installed: pip install 'prunetrain\[export\]', or pip install safetensors$"
    with pytest.raises(ConfigError, match=message):
        load_weights(Toy(), tmp_path / "w.safetensors")


# Runs


OWN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, hidden=8, classes=4):
        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))
"""


def test_run_starts_from_weights_and_goes_on_without_the_file(tmp_path: Path) -> None:
    images, file = write_images(tmp_path / "images.npz"), write(tmp_path / "net.py", OWN)
    torch.save({"layer_1.weight": torch.full((8, 64), 0.5), "layer_1.bias": torch.zeros(8)}, tmp_path / "w.pt")
    config = settings(images, tmp_path, model=f"{file}:Net", weights=str(tmp_path / "w.pt"), epochs=1, penalty_ratio=0.0, lr=0.0)
    listener = Recorder()
    outcome = start_run(config, listener)
    assert outcome.run.name == "Net-npz"
    assert listener.messages == [
        "weights: 2 of the network's 4 tensors are in the file",
        "  not saved, newly initialised: 3.weight, 3.bias",
    ]
    saved = torch.load(outcome.run.last, weights_only=True)["model"]
    assert torch.equal(saved["layer_1.weight"], torch.full((8, 64), 0.5))
    file.unlink()
    (tmp_path / "w.pt").unlink()
    assert resume_run(outcome.run.last, {"epochs": 2}, Recorder()).finished
    with pytest.raises(ConfigError, match=r"^--model-arg cannot change when a run is resumed"):
        resume_run(outcome.run.last, {"model_args": ("hidden=4",)}, Recorder())


def test_own_network_of_another_number_of_classes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    images, file = write_images(tmp_path / "images.npz"), write(tmp_path / "net.py", OWN)
    config = settings(images, tmp_path / "out", model=f"{file}:Net", model_args=("classes=5",))
    with pytest.raises(
        ConfigError, match=r"net\.py:Net returns 5 numbers per image, but the data has 4 classes: it must .* as in --model-arg classes=4$"
    ):
        start_run(config, Recorder())
    assert not (tmp_path / "out").exists()
