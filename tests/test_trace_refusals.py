"""What no network file can say is refused in one line that names the line of the model, or the module, and what to change."""

import random
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from traced import IMAGES, network

from prunetrain.errors import TraceError
from prunetrain.graph.trace import trace


def function(name: str, forward: Callable[[Tensor], Any], backward: Callable[[Tensor], Any]) -> Any:
    """A function of one tensor that defines its own gradient."""
    own = {"forward": staticmethod(lambda ctx, x: forward(x)), "backward": staticmethod(lambda ctx, gradient: backward(gradient))}
    return type(name, (torch.autograd.Function,), own)


Doubling = function("Doubling", lambda x: x * 2, lambda gradient: gradient)
Sign = function("Sign", lambda x: x.sign(), lambda gradient: gradient)  # a straight-through estimator, as binary networks have it
Clipping = function("Clipping", lambda x: x * 1, lambda gradient: gradient.clamp(-20, 20))  # leaves small gradients as they are
Listing = function("Listing", lambda x: [x * 2], lambda gradient: None)  # the tensors in a list get no gradients
doubled = Doubling.apply


class Mixing(torch.autograd.Function):
    """Draws other random numbers for the gradient, as shake-shake does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        share = torch.rand(1)
        return share * x + (1 - share) * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.rand(1)
        return share * gradient, (1 - share) * gradient


class Scaling(torch.autograd.Function):
    """Gives no gradient to the scale of the network that it is called with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: nn.Module) -> Tensor:
        ctx.scale = network.scale.mul_(2)
        return x * ctx.scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


class GeometricMean(torch.autograd.Function):
    """No result and no gradient for images with negative numbers, and a wrong one for others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean = x.log().mean(dim=(1, 2, 3), keepdim=True).exp()
        ctx.save_for_backward(x, mean)
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        return gradient * mean / x


class Scripted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


def branch(self: nn.Module, x: Tensor) -> Tensor:
    return self.conv(x) if x.sum() > 0 else x


def raising(self: nn.Module, x: Tensor) -> Tensor:
    raise ValueError("no such luck\nat all")


def without_gradients(self: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.conv(x).exp()


def layer_without_gradients(self: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.conv(x)
    return x.exp()


def layer_in_inference_mode(self: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        x = self.conv(x)
    return x + 1


def into_a_constant(self: nn.Module, x: Tensor) -> Tensor:
    made = x.new_zeros(x.shape)
    made[:, :1] = x[:, 1:2]
    return made


def by_the_batch(self: nn.Module, x: Tensor) -> Tensor:
    return x * (1 / x.shape[0])


def other_steps_for_other_batches(self: nn.Module, x: Tensor) -> Tensor:
    for _ in range(x.shape[0]):
        x = x.exp()
    return x


def drawn_by_python(self: nn.Module, x: Tensor) -> Tensor:
    return x if self.training and random.random() < 0.5 else self.conv(x)


def drawn_by_numpy(self: nn.Module, x: Tensor) -> Tensor:
    return x * float(np.random.randn())


def by_parity(self: nn.Module, x: Tensor) -> Tensor:
    return self.conv(x) if x.shape[0] % 2 else x


def of_one_image(self: nn.Module, x: Tensor) -> Tensor:
    if len(x) == 1:
        return self.conv(x)
    return self.conv(x).exp()


def with_another_layer_for_one_image(self: nn.Module, x: Tensor) -> Tensor:
    return self.conv(x) if x.size(0) > 1 else self.spare(x)


def with_another_number_for_one_image(self: nn.Module, x: Tensor) -> Tensor:
    return x.exp() * (2 if x.shape[0] == 1 else 3)


def averaging(self: nn.Module, x: Tensor) -> Tensor:
    if self.training:
        self.count = 0.9 * self.count + 0.1 * x.mean()
    return x - self.count


def watching(self: nn.Module, x: Tensor) -> Tensor:
    self.count = x.mean()
    return self.conv(x)


def setting_back(self: nn.Module, x: Tensor) -> Tensor:
    x = x + self.count
    self.count = torch.zeros(1)
    return x


def clipping(self: nn.Module, x: Tensor) -> Tensor:
    x = self.conv(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return x


CALLS: list[tuple[Callable[..., Any], str]] = [
    (
        branch,
        "branching on a tensor reads the values of a tensor, but a network file runs the same steps for all images: use tensor operations",
    ),
    (lambda self, x: x * x.mean().item(), "item() reads the values of a tensor"),
    (lambda self, x: x * float(x.mean()), "float() of a tensor reads the values"),
    (lambda self, x: x[x > 0], "__getitem__ makes a tensor whose shape depends on the values of another"),
    (lambda self, x: self.conv(x).detach(), "detach stops gradients"),
    (lambda self, x: self.conv(x.data), "data stops gradients"),
    (lambda self, x: x + self.conv(x).detach().mean(), "detach stops gradients"),
    (lambda self, x: self.conv(x).detach_(), "detach_ stops gradients"),
    (without_gradients, "runs without gradients in train mode"),
    (layer_without_gradients, "runs without gradients in train mode"),
    (layer_in_inference_mode, "runs without gradients in train mode"),
    (lambda self, x: Doubling.apply(x), "Doubling defines a gradient that is not that of its forward pass, which a network file cannot"),
    (lambda self, x: Sign.apply(x), "Sign defines a gradient that is not that of its forward pass, which a network file cannot express: "),
    (lambda self, x: Clipping.apply(x), "Clipping defines a gradient that is not that of its forward pass"),
    (lambda self, x: Mixing.apply(x, self.conv(x)), "Mixing defines a gradient that is not that of its forward pass"),
    (lambda self, x: Listing.apply(self.conv(x))[0], "Listing defines a gradient that is not that of its forward pass"),
    (lambda self, x: GeometricMean.apply(x.exp()), "GeometricMean defines a gradient that is not that of its forward pass"),
    (lambda self, x: Doubling.apply(x, 3), "Doubling defines its own gradient, which cannot be compared with that of its forward pass: "),
    (lambda self, x: x + torch.autograd.Variable(self.conv(x)), "detach stops gradients"),
    (
        lambda self, x: torch.cat([x, torch.FloatTensor(*x.shape).fill_(0)], 1),
        "torch.FloatTensor(...): call the Python function, or torch.zeros",
    ),
    (
        lambda self, x: torch.fft.fft(x).real,
        "fft_fft returns a tensor of torch.complex64, torch.strided: use dense tensors of torch.float32",
    ),
    (lambda self, x: x.double(), "converts torch.float32 to torch.float64"),
    (drawn_by_python, "the network draws random numbers from Python or numpy, which a network file cannot express: use torch's dropout"),
    (drawn_by_numpy, "the network draws random numbers from Python or numpy"),
    (into_a_constant, "__setitem__ writes into a constant: put the parts together with torch.cat or torch.stack"),
    (lambda self, x: self.conv.weight.data.zero_() + x, "data stops gradients"),
    (lambda self, x: x + self.count.add_(1), "add_ changes self.count in place"),
    *[
        (forward, "forward changes self.count, which a network file cannot express: keep")
        for forward in (averaging, watching, setting_back)
    ],
    (clipping, "register_hook reads or changes gradients, which a network file cannot express: remove it"),
    (lambda self, x: x if self.conv(x).grad_fn is None else x.exp(), "grad_fn reads how a gradient is computed"),
    (by_the_batch, "only shapes of tensors may depend on the batch size"),
    *[
        (forward, "runs different steps for different batch sizes")
        for forward in (by_parity, of_one_image, with_another_layer_for_one_image, with_another_number_for_one_image)
    ],
    (other_steps_for_other_batches, "runs different steps for different batch sizes"),
    (lambda self, x: x / len(x), "div: a number depends on the batch size (7 with 7 images)"),
    (lambda self, x: x[:, self.order + 1], "takes positions that are computed: use constants, or a buffer as it is"),
    (lambda self, x: x + self.table[self.order].mean(0), "negative positions in a table are not supported: add its length to them"),
    (lambda self, x: torch.add(x, x, alpha=2), "add: alpha and rounding_mode are not supported"),
    (lambda self, x: x.cumsum(1), "cumsum is not supported yet: use other functions of torch"),
    (lambda self, x: x * x.max(), "max: runs over all images at once: give a dimension"),
    (lambda self, x: x[:, :1] * x.max(1, keepdim=True)[1], "holds the positions of max: use its values only"),
    *[
        (lambda self, x, mask=mask: self.attention(*[x.flatten(2)] * 3, need_weights=False, attn_mask=mask)[0], "can only be called as")
        for mask in (torch.zeros(3, 3), torch.zeros(1, 1))
    ],
    (lambda self, x: self.attention(*[x.flatten(2)] * 3)[0], "can only be called as attention(x, x, x, need_weights=False)"),
    (lambda self, x: self.conv(x[:, :2]), "conv does not fit its input: takes 3 channels, but its input has 2"),
    (lambda self, x: x @ torch.ones(3, 3), "Net cannot be traced: "),
    (raising, "Net cannot be traced: no such luck"),
    (lambda self, x: self.rnn(x.flatten(2))[0], "lstm is not supported yet"),
    (lambda self, x: self.frozen(x), "nn.BatchNorm2d with bias=False is not supported yet"),
    (lambda self, x: self.cumulative(x), "momentum must be a finite number, not None"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_part_that_fails() -> None:
    model = network(lambda self, x: self.part(x), part=torch.jit.script(Scripted()))
    with pytest.raises(TraceError, match=r": prunetrain cannot follow a scripted function or module \(torch\.jit\): call the Python code"):
        trace(model, IMAGES)


def test_a_function_with_its_own_gradient_that_was_looked_up_before() -> None:
    with pytest.raises(TraceError, match=r"call a function that defines its own gradient as NAME\.apply\(\.\.\.\), not by another name$"):
        trace(network(lambda self, x: doubled(x)), IMAGES)


def test_a_function_that_changes_a_parameter_it_is_not_called_with() -> None:
    scale = nn.Parameter(torch.ones(3, 1, 1), requires_grad=False)
    with pytest.raises(TraceError, match=r"Scaling defines its own gradient, .*: it uses a tensor of the network that is not one of its "):
        trace(network(lambda self, x: Scaling.apply(x, self), scale=scale), IMAGES)
    assert torch.equal(scale, torch.ones(3, 1, 1))


@pytest.mark.parametrize(("forward", "message"), CALLS)
def test_the_line_is_named(forward: Callable[..., Any], message: str) -> None:
    model = network(
        forward,
        conv=nn.Conv2d(3, 3, 1),
        spare=nn.Conv2d(3, 3, 1),
        attention=nn.MultiheadAttention(64, 2, batch_first=True),
        rnn=nn.LSTM(64, 4, batch_first=True),
        frozen=nn.BatchNorm2d(3),
        cumulative=nn.BatchNorm2d(3, momentum=None),
        count=torch.zeros(1),
        order=torch.tensor([0, -1]),
        table=torch.zeros(2, 8),
    )
    model.frozen.bias = None
    with pytest.raises(TraceError) as caught:
        trace(model, IMAGES)
    first = forward.__code__.co_firstlineno
    line, said = re.fullmatch(rf"{re.escape(__file__)}:(\d+): (.*)", str(caught.value)).groups()  # type: ignore[union-attr]
    assert message in said
    assert first <= int(line) <= first + 4


def test_a_layer_that_is_given_another_tensor() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        self.norm.running_mean = torch.zeros(3)
        return x

    model = network(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    said = (
        "module norm: forward changes self.norm.running_mean, which a network file cannot express: keep parameters and buffers as they are"
    )
    with pytest.raises(TraceError, match=f"^{re.escape(said)}$"):
        trace(model, IMAGES)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_of_weights(register: str) -> None:
    model = network(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 3, 1), spare=nn.Conv2d(3, 3, 1))
    hooks = [getattr(layer.weight, register)(lambda gradient: None) for layer in (model.conv, model.spare)]
    with pytest.raises(TraceError, match=r"^conv\.weight has a hook on its gradient, which a network file cannot express: remove it$"):
        trace(model, IMAGES)
    hooks[0].remove()
    trace(model, IMAGES)


def test_a_constant_that_forward_keeps_is_a_constant() -> None:
    """In a buffer that had none yet, or one of another shape."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.linspace(0, 1, x.shape[-1])
        if self.mask.shape != x.shape[-2:]:
            self.mask = torch.ones(x.shape[-2:]).tril()
        return x * self.kept + self.mask

    model = network(forward, mask=torch.ones(1, 1))
    model.register_buffer("kept", None)
    assert [step.target for step in trace(model, IMAGES).steps] == ["*", "+"]
    assert (model.kept, model.mask.shape) == (None, (1, 1))


def test_random_numbers_of_python_and_numpy_are_put_back() -> None:
    inner = network(lambda self, x: x + random.random() * np.random.rand())
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), inner))
    before = random.getstate(), np.random.get_state()[2]
    with pytest.raises(TraceError, match=r"test_trace_refusals\.py:\d+: 1\.1 draws random numbers from Python or numpy"):
        trace(model, IMAGES)
    assert (random.getstate(), np.random.get_state()[2]) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            network(lambda self, x, y: x + y),
            "Net.forward requires 2 arguments, but gets one batch of images: give the others default values",
        ),
        (network(lambda self, x: None), "the model: forward must return a tensor"),
        (network(lambda self, x: torch.ones(2)), "the model: forward returns a tensor that does not depend on the images"),
        (network(lambda self, x: torch.flatten(x)), "Net cannot be written as a network file: an output must have one row per image"),
        (nn.Sequential(nn.Conv2d(3, 4, 9)), "module 0: 0 does not fit its input: nothing is left of the image: 7x3x8x8 becomes 7x4x0x0"),
        (nn.Sequential(OrderedDict([("in", nn.Conv2d(3, 3, 1))])), "module in: 'in' cannot name a layer"),
    ],
)
def test_models_that_cannot_be_files(model: nn.Module, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        trace(model, IMAGES)
    said = str(caught.value)
    assert message in said
    assert "\n" not in said


def test_a_subclass_of_a_layer_is_not_taken_for_the_layer() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    graph = trace(nn.Sequential(Scaled(3, 3, 1)), IMAGES)
    assert [step.target for step in graph.steps] == ["self.layer_0", "*"]


def test_a_hook_is_part_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model[0].register_forward_hook(lambda module, inputs, output: F.relu(output))
    assert [step.target for step in trace(model, IMAGES).steps] == ["self.layer_0", "F.relu"]


class Layers(nn.Module):
    """Two convs, the second in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv(x))


NORMS: list[tuple[Callable[..., Any], str, str, str]] = [
    (nn.utils.parametrizations.weight_norm, "conv", "weight_norm", "parametrize.remove_parametrizations(model.conv, 'weight')"),
    (nn.utils.parametrizations.spectral_norm, "conv", "spectral_norm", "parametrize.remove_parametrizations(model.conv, 'weight')"),
    (
        nn.utils.parametrizations.orthogonal,
        "rest.1",
        "orthogonal",
        "parametrize.remove_parametrizations(model.get_submodule('rest.1'), 'weight')",
    ),
    (nn.utils.spectral_norm, "conv", "spectral_norm", "remove_spectral_norm(model.conv, 'weight')"),
    (nn.utils.weight_norm, "rest.1", "weight_norm", "remove_weight_norm(model.get_submodule('rest.1'), 'weight')"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(("norm", "layer", "kind", "call"), NORMS)
def test_weights_that_a_norm_computes(norm: Callable[..., Any], layer: str, kind: str, call: str) -> None:
    """The call that the message names makes the model one that can be traced."""
    model = Layers()
    norm(model.get_submodule(layer))
    with pytest.raises(TraceError) as caught:
        trace(model, IMAGES)
    said = f"{layer} computes its weight by {kind}, which a network file cannot express: call torch.nn.utils.{call} first"
    assert re.sub(r"^\S+:( |\d+: )", "", str(caught.value)) == said
    eval(f"torch.nn.utils.{call}")
    assert len(trace(model, IMAGES).layers) == 2


def test_a_norm_of_the_whole_model_and_of_a_weight_read_without_its_layer() -> None:
    model = network(lambda self, x: F.conv2d(x, self.weight), weight=nn.Parameter(torch.rand(4, 3, 1, 1)))
    nn.utils.parametrizations.weight_norm(model)
    with pytest.raises(TraceError, match=r"the network computes its weight by weight_norm, .*s\(model, 'weight'\) first"):
        trace(model, IMAGES)
    model = network(lambda self, x: F.conv2d(x, self.conv.weight), conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))
    with pytest.raises(TraceError, match=r"conv computes its weight by weight_norm, .*s\(model.conv, 'weight'\) first"):
        trace(model, IMAGES)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize(
    ("change", "product"),
    [
        (lambda conv: nn.utils.parametrize.register_parametrization(conv, "weight", Halved()), "/"),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "*"),
    ],
)
def test_weights_that_are_products_are_traced(change: Callable[[nn.Module], object], product: str) -> None:
    model = Layers()
    change(model.conv)
    assert [step.target for step in trace(model, IMAGES).steps] == [product, "F.conv2d", "F.relu", "self.rest_1"]


def test_lazy_layers() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(TraceError, match=r"^module 0: 0 is lazy and has no weights yet: run one batch through the model first$"):
        trace(model, IMAGES)
    model(torch.rand(2, 3, 8, 8))
    assert len(trace(model, IMAGES).layers) == 2


def test_a_lazy_layer_that_nothing_calls() -> None:
    model = network(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 3), spare=nn.LazyConv2d(4, 3))
    assert len(trace(model, IMAGES).layers) == 1


@pytest.mark.parametrize("example", [None, (1, 3, 224, 224)])
def test_an_example_that_is_no_tensor(example: Any) -> None:
    with pytest.raises(TraceError, match=r"^the example input must be a batch of images, such as torch.randn\(1, 3, 224, 224\), not "):
        trace(nn.Conv2d(3, 4, 3), example)
