"""The zoo: published parameter counts, shapes, traceability, first weights, and errors that say what to do.

Networks of millions of parameters are built on the meta device, where nothing is computed, unless values matter.
"""

import functools
import math
import subprocess
import sys

import pytest
import torch
from torch import fx, nn

from prunetrain import zoo
from prunetrain.errors import ConfigError

PARAMETERS = {  # name: input shape, number of classes, parameters
    "alexnet": ((3, 32, 32), 10, 23_272_266),
    "lenet-300-100": ((1, 28, 28), 10, 266_610),
    "lenet5": ((1, 28, 28), 10, 431_080),
    "mlp": ((1, 28, 28), 10, 2_386_000),
    "mobilenet-v1": ((3, 224, 224), 1000, 4_231_976),
    "mobilenet-v1-0.75": ((3, 224, 224), 1000, 2_585_560),
    "mobilenet-v1-cifar": ((3, 32, 32), 10, 3_217_226),
    "mobilenet-v1-cifar-0.75": ((3, 32, 32), 10, 1_824_250),
    "resnet110": ((3, 32, 32), 10, 1_730_714),
    "resnet18": ((3, 224, 224), 1000, 11_689_512),
    "resnet18-cifar": ((3, 32, 32), 10, 11_173_962),
    "resnet20": ((3, 32, 32), 10, 272_474),
    "resnet32": ((3, 32, 32), 10, 466_906),
    "resnet34": ((3, 224, 224), 1000, 21_797_672),
    "resnet44": ((3, 32, 32), 10, 661_338),
    "resnet50": ((3, 224, 224), 1000, 25_557_032),
    "resnet50-cifar": ((3, 32, 32), 10, 776_794),
    "resnet56": ((3, 32, 32), 10, 855_770),
    "vgg11": ((3, 32, 32), 10, 9_228_362),
    "vgg13": ((3, 32, 32), 10, 9_413_066),
    "vgg16": ((3, 32, 32), 10, 14_724_042),
    "vgg16-bn": ((3, 224, 224), 1000, 138_365_992),
    "vgg19": ((3, 32, 32), 10, 20_035_018),
    "vgg8": ((3, 32, 32), 10, 3_917_386),
}
SMALLEST = {  # name: shortest side, for those where it is not 3
    "alexnet": 15,  # 15 -> 8 -> 4 -> 2 -> 1
    "lenet-300-100": 1,
    "lenet5": 16,  # 16 -> 12 -> 6 -> 2 -> 1
    "mlp": 1,
    "mobilenet-v1": 17,  # 17 -> 9 -> 5 -> 3 -> 2 -> 1
    "mobilenet-v1-0.75": 17,
    "mobilenet-v1-cifar": 9,
    "mobilenet-v1-cifar-0.75": 9,
    "resnet18": 17,
    "resnet18-cifar": 5,
    "resnet34": 17,
    "resnet50": 17,
    "vgg8": 32,
    "vgg11": 32,
    "vgg13": 32,
    "vgg16": 32,
    "vgg16-bn": 32,
    "vgg19": 32,
}
LAYERS = {  # name: qualified names, which become the attribute names in generated files
    "alexnet": ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2", "fc3"],
    "lenet-300-100": ["fc1", "fc2", "fc3"],
    "lenet5": ["conv1", "conv2", "fc1", "fc2"],
    "mlp": ["fc1", "fc2", "fc3", "fc4", "fc5"],
    "vgg11": ["stage1.conv1", "stage1.bn1", "stage2.conv1", "stage2.bn1", "stage3.conv1", "stage3.bn1", "stage3.conv2"],
    "mobilenet-v1": ["conv1", "bn1", "block1.depthwise", "block1.bn1", "block1.pointwise", "block1.bn2", "block2.depthwise"],
    "resnet20": ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.1.conv1"],
    "resnet50": ["conv1", "bn1", "layer1.0.downsample.0", "layer1.0.downsample.1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2"],
}


@functools.cache
def build(name: str, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    with torch.device("cpu" if PARAMETERS[name][2] < 2_000_000 else "meta"):
        return zoo.build(name, input_shape=input_shape, num_classes=num_classes)


def logits_shape(model: nn.Module, *shape: int) -> tuple[int, ...]:
    device = next(model.parameters()).device
    with torch.inference_mode():
        return tuple(model(torch.zeros(shape, device=device)).shape)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_names_are_sorted_and_complete() -> None:
    assert zoo.names() == tuple(sorted(PARAMETERS))


def test_names_do_not_import_torch() -> None:
    code = "import sys; from prunetrain import zoo; zoo.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", zoo.names())
def test_parameter_count_is_the_published_one(name: str) -> None:
    input_shape, num_classes, expected = PARAMETERS[name]
    assert parameter_count(build(name, input_shape, num_classes)) == expected


def test_resnet20_count_by_hand() -> None:
    def conv_bn(in_channels: int, out_channels: int, kernel: int) -> int:
        return in_channels * out_channels * kernel**2 + 2 * out_channels

    stem = conv_bn(3, 16, 3)
    stage1 = 6 * conv_bn(16, 16, 3)
    stage2 = conv_bn(16, 32, 3) + 5 * conv_bn(32, 32, 3) + conv_bn(16, 32, 1)
    stage3 = conv_bn(32, 64, 3) + 5 * conv_bn(64, 64, 3) + conv_bn(32, 64, 1)
    classifier = 64 * 10 + 10
    assert stem + stage1 + stage2 + stage3 + classifier == PARAMETERS["resnet20"][2]


def test_lenet5_has_the_430500_weights_that_papers_count() -> None:
    model = build("lenet5", (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == 430_500


@pytest.mark.parametrize("name", zoo.names())
def test_smallest_and_oblong_images(name: str) -> None:
    side = SMALLEST.get(name, 3)
    shape = (2, side, side + 9)
    assert logits_shape(build(name, shape, 5), 2, *shape) == (2, 5)
    if side > 1:
        with pytest.raises(ConfigError, match=rf"^{name} needs images of at least {side}x{side} \(got 1x{side}x{side - 1}\): choose "):
            build(name, (1, side, side - 1), 10)


@pytest.mark.parametrize("name", zoo.names())
def test_traces_and_runs_at_two_batch_sizes(name: str) -> None:
    input_shape, num_classes, _ = PARAMETERS[name]
    model = build(name, input_shape, num_classes)
    traced = fx.symbolic_trace(model)
    assert logits_shape(traced, 1, *input_shape) == (1, num_classes)
    assert logits_shape(traced, 5, *input_shape) == (5, num_classes)
    assert not any(node.kwargs.get("inplace") for node in traced.graph.nodes)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    layers = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    layers = [layer for layer in layers if not isinstance(model.get_submodule(layer), nn.Dropout)]
    wanted = LAYERS.get(name, [])
    assert layers[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("name", "last", "shape"),
    [
        ("mobilenet-v1", "block13", (1024, 7, 7)),
        ("mobilenet-v1-cifar-0.75", "block13", (768, 2, 2)),
        ("resnet18", "layer4", (512, 7, 7)),
        ("resnet18-cifar", "layer4", (512, 4, 4)),
        ("resnet20", "layer3", (64, 8, 8)),
        ("resnet50-cifar", "layer3", (256, 8, 8)),
        ("vgg8", "stage5", (512, 1, 1)),
        ("vgg16-bn", "stage5", (512, 7, 7)),
    ],
)
def test_last_feature_map(name: str, last: str, shape: tuple[int, int, int]) -> None:
    """Strides, which neither parameter counts nor logits show."""
    input_shape, num_classes, _ = PARAMETERS[name]
    model = build(name, input_shape, num_classes)
    seen = []
    hook = model.get_submodule(last).register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    logits_shape(model, 1, *input_shape)
    hook.remove()
    assert seen == [shape]


def test_every_name_has_its_own_class_name() -> None:
    classes = {name: type(build(name, *PARAMETERS[name][:2])).__name__ for name in zoo.names()}
    assert len(set(classes.values())) == len(classes)
    assert all(name.isidentifier() for name in classes.values())
    assert classes["resnet20"] == "ResNet20"
    assert classes["vgg16-bn"] == "VGG16BN"


def test_resnet20_takes_digits_and_learns() -> None:
    torch.manual_seed(0)
    model = zoo.build("resnet20", input_shape=(1, 8, 8), num_classes=10)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_block_adds_its_input() -> None:
    model = zoo.build("resnet20", input_shape=(1, 8, 8), num_classes=10).eval()
    block = model.get_submodule("layer1.0")
    nn.init.zeros_(block.get_parameter("bn2.weight"))
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_resnets_compute_what_torchvision_computes(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    ours = zoo.build(name, input_shape=(3, 64, 64), num_classes=11).eval()
    with torch.device("meta"):
        theirs = models.get_model(name, num_classes=11).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_resnet_weights_are_he_normal_over_fan_out() -> None:
    torch.manual_seed(0)
    model = zoo.build("resnet18-cifar", input_shape=(3, 32, 32), num_classes=10)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1]))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(module.weight.mean().item()) < 0.1 * expected, name
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all(), name
            assert module.bias.eq(0).all(), name
        elif isinstance(module, nn.Linear):
            assert module.weight.abs().max().item() <= 1 / math.sqrt(module.in_features), name


def test_lenet5_weights_are_caffes() -> None:
    torch.manual_seed(0)
    model = zoo.build("lenet5", input_shape=(1, 28, 28), num_classes=10)
    weight = model.get_parameter("fc1.weight")
    assert weight.abs().max().item() == pytest.approx(math.sqrt(3 / 800), rel=0.001)
    assert model.get_parameter("fc1.bias").eq(0).all()


def test_mobilenet_classifier_weights_are_narrow() -> None:
    torch.manual_seed(0)
    model = zoo.build("mobilenet-v1-cifar-0.75", input_shape=(3, 32, 32), num_classes=100)
    assert model.get_parameter("fc.weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert model.get_parameter("fc.bias").eq(0).all()


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet21': did you mean resnet"):
        zoo.build("resnet21", input_shape=(3, 32, 32), num_classes=10)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg16", (1, 8, 8), "vgg16 needs images of at least 32x32 (got 1x8x8): choose resnet20 or larger images"),
        ("resnet18", (3, 16, 16), "resnet18 needs images of at least 17x17 (got 3x16x16): choose resnet18-cifar or larger images"),
        ("resnet20", (3, 9, 2), "resnet20 needs images of at least 3x3 (got 3x9x2): choose mlp or larger images"),
        ("mlp", (1, 0, 8), "mlp needs images as channels x height x width, each at least 1 (got 1x0x8): check the data set"),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build(name, input_shape=shape, num_classes=10)
    assert str(caught.value) == message


def test_no_classes() -> None:
    with pytest.raises(ConfigError, match="mlp needs at least 1 class"):
        zoo.build("mlp", input_shape=(1, 8, 8), num_classes=0)
