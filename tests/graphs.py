"""LayerGraphs for tests, small and by hand; `Sketch` writes them down, `layer_graphs()` draws random ones."""

from random_graphs import layer_graphs
from sketch import Sketch

from prunetrain.graph.layergraph import BatchSize, LayerGraph

__all__ = [
    "Sketch",
    "attention",
    "auxiliary",
    "chain",
    "concat",
    "depthwise",
    "gate",
    "gating",
    "grouped",
    "head",
    "layer_graphs",
    "layer_norm",
    "padded",
    "residual",
    "shuffle",
    "windows",
    "without_a_branch",
]


# By hand.


def chain() -> LayerGraph:
    """Two convolutions, one with BatchNorm and one with a bias, and a classifier."""
    net = Sketch("Chain", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, 4, kernel_size=3, padding=1)
    x = net.call("F.relu", net.conv("conv2", x, 6, kernel_size=3, stride=2, padding=1))
    return net.graph(net.classifier("fc", x, 5))


def residual(stem: int = 8, inner: tuple[int, int] = (8, 16), wide: int = 16) -> LayerGraph:
    """A stem and two residual blocks, the second with a projection; smaller arguments make the network after a cut."""
    net = Sketch("Residual", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, stem, kernel_size=3, padding=1)
    shortcut = x
    x = net.conv_bn_relu("layer1_0_:1", x, inner[0], kernel_size=3, padding=1)
    x = net.norm("layer1_0_bn2", net.conv("layer1_0_conv2", x, stem, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    shortcut = net.conv("layer2_0_downsample_0", x, wide, kernel_size=1, stride=2, bias=False)
    shortcut = net.norm("layer2_0_downsample_1", shortcut)
    x = net.conv_bn_relu("layer2_0_:1", x, inner[1], kernel_size=3, stride=2, padding=1)
    x = net.norm("layer2_0_bn2", net.conv("layer2_0_conv2", x, wide, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    return net.graph(net.classifier("fc", x, 10))


def without_a_branch() -> LayerGraph:
    """`residual` after the first block's branch went; its constant stayed."""
    net = Sketch("Residual", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, 8, kernel_size=3, padding=1)
    x = net.call("F.relu", net.call("+", x, net.declare("layer1_0_bn2_bias", (8, 1, 1))))
    shortcut = net.norm("layer2_0_downsample_1", net.conv("layer2_0_downsample_0", x, 16, kernel_size=1, stride=2, bias=False))
    x = net.conv_bn_relu("layer2_0_:1", x, 16, kernel_size=3, stride=2, padding=1)
    x = net.norm("layer2_0_bn2", net.conv("layer2_0_conv2", x, 16, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    return net.graph(net.classifier("fc", x, 10))


def padded(stem: int = 4, wide: int = 8, amounts: tuple[int, int] = (2, 2)) -> LayerGraph:
    """A residual block whose shortcut gets channels of zeros (option A); the arguments make the network after a cut."""
    net = Sketch("Padded", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, stem, kernel_size=3, padding=1)
    shortcut = net.call("F.max_pool2d", x, kernel_size=2)
    if any(amounts):
        shortcut = net.call("F.pad", shortcut, pad=(0, 0, 0, 0, *amounts))
    x = net.norm("bn2", net.conv("conv2", x, wide, kernel_size=3, stride=2, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    return net.graph(net.classifier("fc", x, 5))


def depthwise() -> LayerGraph:
    """A depthwise-separable block with ReLU6, as in MobileNet."""
    net = Sketch("Depthwise", (1, 12, 12))
    x = net.conv_bn_relu("1", net.x, 8, kernel_size=3, stride=2, padding=1)
    x = net.conv("block1_depthwise", x, 8, kernel_size=3, padding=1, groups=8, bias=False)
    x = net.call("F.relu6", net.norm("block1_bn1", x))
    x = net.call("F.relu6", net.norm("block1_bn2", net.conv("block1_pointwise", x, 16, kernel_size=1, bias=False)))
    return net.graph(net.classifier("fc", x, 4))


def head() -> LayerGraph:
    """Max and average pooling, flatten, linear layers with dropout, as in AlexNet."""
    net = Sketch("Head", (3, 16, 16))
    x = net.call("F.relu", net.conv("conv1", net.x, 4, kernel_size=5, stride=(2, 1), padding=(2, 1)))
    x = net.call("F.max_pool2d", x, kernel_size=3, stride=2, padding=1, ceil_mode=True)
    x = net.call("F.avg_pool2d", x, kernel_size=(2, 1), count_include_pad=False)
    x = net.call("torch.flatten", x, start_dim=1)
    x = net.call("F.relu", net.norm("bn1", net.linear("fc1", net.dropout(x, 0.5), 12, bias=False), eps=0.001, momentum=0.01))
    return net.graph(net.linear("fc2", net.dropout(x, 0.25), 3))


def gate() -> LayerGraph:
    """A squeeze-excite gate inside a residual block: two values are kept at the same time."""
    net = Sketch("Gate", (4, 6, 6))
    x = net.conv_bn_relu("block1_:1", net.x, 4, kernel_size=3, padding=1)
    squeezed = net.call("F.adaptive_avg_pool2d", x, output_size=1)
    squeezed = net.call("F.silu", net.conv("block1_squeeze", squeezed, 2, kernel_size=1))
    excited = net.call("torch.sigmoid", net.conv("block1_excite", squeezed, 4, kernel_size=1))
    x = net.call("*", x, excited)
    return net.graph(net.classifier("fc", net.call("+", x, net.x), 2))


def concat() -> LayerGraph:
    """Concatenations of all features so far and a transition, as in DenseNet; max pooling beside a convolution, as in Inception."""
    net = Sketch("Concat", (3, 16, 16))
    x = net.conv("conv0", net.x, 4, kernel_size=3, padding=1, bias=False)
    features = [x]
    for number in (1, 2):
        prefix = f"dense1_{number}_"
        x = net.call("F.relu", net.norm(f"{prefix}norm", net.cat(*features)))
        features.append(net.conv(f"{prefix}conv", x, 2, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.norm("transition1_norm", net.cat(*features)))
    x = net.call("F.avg_pool2d", net.conv("transition1_conv", x, 4, kernel_size=1, bias=False), kernel_size=2)
    narrow = net.conv_bn_relu("mixed_:1", x, 3, kernel_size=1)
    wide = net.conv_bn_relu("mixed_:2b", net.conv_bn_relu("mixed_:2a", x, 2, kernel_size=1), 3, kernel_size=3, padding=1)
    pooled = net.call("F.max_pool2d", x, kernel_size=3, stride=1, padding=1)
    pooled = net.conv_bn_relu("mixed_:3", pooled, 2, kernel_size=1)
    return net.graph(net.classifier("fc", net.cat(narrow, wide, pooled), 5))


def shuffle() -> LayerGraph:
    """Half of the channels passes by, the other half is convolved, and both are shuffled, as in ShuffleNetV2."""
    net = Sketch("Shuffle", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, 8, kernel_size=3, padding=1)
    for prefix in ("stage2_0_", "stage2_1_"):
        passed, y = net.slice(x, 1, stop=4), net.slice(x, 1, 4)
        y = net.conv_bn_relu(f"{prefix}:1", y, 4, kernel_size=1)
        y = net.norm(f"{prefix}bn2", net.conv(f"{prefix}conv2", y, 4, kernel_size=3, padding=1, groups=4, bias=False))
        y = net.conv_bn_relu(f"{prefix}:3", y, 4, kernel_size=1)
        x = net.call("F.channel_shuffle", net.cat(passed, y), groups=2)
    x = net.slice(net.slice(x, 2, step=2), 3, step=2)  # as a shortcut of type A does
    return net.graph(net.classifier("fc", x, 4))


def layer_norm() -> LayerGraph:
    """Depthwise convolution, LayerNorm over the channels, layer scale and stochastic depth, as in ConvNeXt."""
    net = Sketch("Norms", (3, 8, 8))
    x = net.conv("stem", net.x, 6, kernel_size=2, stride=2)
    x = net.call("F.gelu", net.layer("stem_norm", "GroupNorm", x, num_groups=2, num_channels=6))
    for number in (0, 1):
        prefix = f"stages_{number}_"
        y = net.conv(f"{prefix}dwconv", x, 6, kernel_size=3, padding=1, groups=6)
        y = net.layer_norm(f"{prefix}norm", net.call("torch.permute", y, dims=(0, 2, 3, 1)), eps=1e-06)
        y = net.call("F.gelu", net.linear(f"{prefix}mlp_fc1", y, 24))
        y = net.call("torch.permute", net.linear(f"{prefix}mlp_fc2", y, 6), dims=(0, 3, 1, 2))
        y = net.call("*", y, net.declare(f"{prefix}gamma", (6, 1, 1)))
        x = net.call("+", x, net.stochastic_depth(y, 0.1))
    x = net.layer("act", "PReLU", net.call("torch.mean", x, dim=(2, 3)), num_parameters=6)
    return net.graph(net.linear("fc", net.call("torch.log", net.call("+", net.call("torch.abs", x), 1)), 4))


def attention() -> LayerGraph:
    """A class token, positions, one encoder block with attention by products, and one with MultiheadAttention, as in ViT."""
    net = Sketch("Attention", (3, 8, 8))
    x = net.call("torch.flatten", net.conv("patches", net.x, 6, kernel_size=4, stride=4), start_dim=2)
    x = net.call("torch.transpose", x, dim0=1, dim1=2)
    batch = BatchSize(x)
    token = net.call("torch.broadcast_to", net.declare("class_token", (1, 1, 6)), size=(batch, -1, -1))
    x = net.call("+", net.cat(token, x), net.declare("positions", (1, 5, 6)))
    y = net.linear("blocks_0_attn_qkv", net.layer_norm("blocks_0_norm1", x), 18)
    y = net.call("torch.unflatten", y, dim=2, sizes=(3, 2, 3))
    y = net.call("torch.permute", y, dims=(2, 0, 3, 1, 4))
    query, key, value = (net.call("[]", y, dim=0, index=number) for number in range(3))
    scores = net.call("@", net.call("*", query, 0.5), net.call("torch.transpose", key, dim0=-2, dim1=-1))
    table = net.declare("blocks_0_attn_bias_table", (9, 2))
    positions = net.declare("blocks_0_attn_bias_index", (25,), "buffer", "int64")
    bias = net.call("torch.unflatten", net.step("F.embedding", input=positions, weight=table), dim=0, sizes=(5, 5))
    scores = net.call("+", scores, net.call("torch.permute", bias, dims=(2, 0, 1)))
    y = net.call("@", net.dropout(net.call("F.softmax", scores, dim=-1), 0.1), value)
    y = net.call("torch.flatten", net.call("torch.transpose", y, dim0=1, dim1=2), start_dim=2)
    x = net.call("+", x, net.linear("blocks_0_attn_proj", y, 6))
    y = net.layer_norm("blocks_1_norm1", x)
    y = net.layer("blocks_1_attn", "MultiheadAttention", y, embed_dim=6, num_heads=2, batch_first=True)
    x = net.call("+", x, y)
    y = net.call("F.gelu", net.linear("blocks_1_mlp_fc1", net.layer_norm("blocks_1_norm2", x), 12))
    x = net.call("+", x, net.linear("blocks_1_mlp_fc2", y, 6))
    return net.graph(net.linear("head", net.call("[]", net.layer_norm("norm", x), dim=1, index=0), 4))


def auxiliary() -> LayerGraph:
    """Two classifiers beside the main one that run in train mode only, as in GoogLeNet, and features as a second output."""
    net = Sketch("Auxiliary", (3, 8, 8))
    x = net.conv_bn_relu("layer1_:1", net.x, 4, kernel_size=3, padding=1)
    first = net.conv_bn_relu("aux1_:1", net.call("F.adaptive_avg_pool2d", x, output_size=4), 4, kernel_size=1)
    first = net.call("F.relu", net.linear("aux1_fc1", net.call("torch.flatten", first, start_dim=1), 8))
    first = net.linear("aux1_fc2", net.dropout(first, 0.7), 5)
    x = features = net.conv_bn_relu("layer2_:1", x, 8, kernel_size=3, stride=2, padding=1)
    x = net.conv_bn_relu("layer3_:1", x, 8, kernel_size=3, padding=1)
    output = net.classifier("fc", net.call("+", x, features), 5)
    second = net.classifier("aux2", features, 5)
    return net.graph(output, features, auxiliary=(second, first))


def windows() -> LayerGraph:
    """Windows of an image become rows of their own and are put back in place, as in Swin."""
    net = Sketch("Windows", (3, 8, 8))
    x = net.conv("stem", net.x, 4, kernel_size=1)
    y = net.layer_norm("blocks_0_norm", net.call("torch.permute", x, dims=(0, 2, 3, 1)))
    y = net.call("torch.roll", y, shifts=(-2, -2), dims=(1, 2))
    y = net.call("torch.reshape", y, shape=(-1, 2, 4, 2, 4, 4))
    y = net.call("torch.flatten", net.call("torch.permute", y, dims=(0, 1, 3, 2, 4, 5)), start_dim=0, end_dim=2)
    y = net.call("torch.flatten", y, start_dim=1, end_dim=2)
    y = net.call("F.gelu", net.linear("blocks_0_fc1", y, 8))
    y = net.call("torch.reshape", net.linear("blocks_0_fc2", y, 4), shape=(-1, 2, 2, 4, 4, 4))
    y = net.call("torch.reshape", net.call("torch.permute", y, dims=(0, 1, 3, 2, 4, 5)), shape=(BatchSize(x), 8, 8, 4))
    y = net.call("torch.roll", y, shifts=(2, 2), dims=(1, 2))
    x = net.call("+", x, net.call("torch.permute", y, dims=(0, 3, 1, 2)))
    return net.graph(net.linear("fc", net.call("torch.amax", x, dim=(2, 3)), 4))


def gating() -> LayerGraph:
    """A residual block whose branch reads some channels of the stream and adds to others: both stand in the file."""
    net = Sketch("Gating", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, 6, kernel_size=3, padding=1)
    y = net.call("torch.index_select", x, dim=1, index=net.index("layer1_0_reads", 0, 2, 5))
    y = net.conv_bn_relu("layer1_0_:1", y, 4, kernel_size=3, padding=1)
    y = net.norm("layer1_0_bn2", net.conv("layer1_0_conv2", y, 2, kernel_size=3, padding=1, bias=False))
    x = net.call("torch.index_add", x, dim=1, index=net.index("layer1_0_writes", 1, 5), source=y)
    return net.graph(net.classifier("fc", net.call("F.relu", x), 4))


def grouped() -> LayerGraph:
    """A grouped convolution as in ResNeXt, then a decoder: transposed convolution, pixel shuffle, interpolation, operators with numbers."""
    net = Sketch("Grouped", (4, 8, 8))
    x = net.conv_bn_relu("layer1_0_:1", net.x, 8, kernel_size=1)
    x = net.conv_bn_relu("layer1_0_:2", x, 8, kernel_size=3, padding=1, groups=4)
    x = net.call("F.relu", net.call("+", net.norm("layer1_0_bn3", net.conv("layer1_0_conv3", x, 4, kernel_size=1, bias=False)), net.x))
    up = net.layer("up", "ConvTranspose2d", x, in_channels=4, out_channels=8, kernel_size=4, stride=2, padding=1, groups=2)
    x = net.call("F.pixel_shuffle", up, upscale_factor=2)
    x = net.call("-", 1, net.call("torch.sigmoid", x))
    x = net.call("/", net.call("F.relu6", net.call("+", x, 3)), 6)
    x = net.call("+", net.call("*", x, 0.458), -0.03)
    x = net.call("F.interpolate", x, scale_factor=0.5, mode="bilinear", align_corners=False)
    x = net.call("torch.maximum", x, net.slice(up, 1, 2, 4))
    return net.graph(net.classifier("fc", x, 3))
