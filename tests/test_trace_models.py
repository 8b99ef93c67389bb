"""Small networks of torchvision, one of each kind: the generated file computes the same bits, in a training step too."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer
from traced import check_same, targets

from prunetrain.graph.layergraph import LayerGraph

BLOCKS = {
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 1)], stochastic_depth_prob=0.2, num_classes=5),
    "vit": lambda: VisionTransformer(16, 4, 1, 2, 8, 16, num_classes=5, dropout=0.1),
    "swin": lambda: SwinTransformer([2, 2], 8, [2, 1], [2, 2], [4, 4], stochastic_depth_prob=0.2, num_classes=5),
    "swin_v2": lambda: SwinTransformer(
        [2, 2],
        8,
        [2, 1],
        [2, 2],
        [4, 4],
        stochastic_depth_prob=0.2,
        num_classes=5,
        block=partial(SwinTransformerBlockV2),
        downsample_layer=PatchMergingV2,
    ),
    **{
        name: partial(torchvision.models.get_model, name, num_classes=5)
        for name in ("shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small", "regnet_y_400mf")
    },
    "googlenet": partial(torchvision.models.get_model, "googlenet", num_classes=5, init_weights=False),
}
SIDES = {"convnext": (16, 24), "vit": (16,), "swin": (16,), "swin_v2": (16,)}


def graph_of(name: str) -> LayerGraph:
    torch.manual_seed(0)
    build: Callable[[], nn.Module] = BLOCKS[name]
    side, *others = SIDES.get(name, (64, 48))
    return check_same(build(), (2, 3, side, side), *((1, 3, other, other) for other in others))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_the_file_computes_the_same(name: str) -> None:
    graph = graph_of(name)
    found = targets(graph)
    match name:
        case "convnext":
            assert [tensor.name for tensor in graph.declared] == [f"features_{i}_layer_scale" for i in ("1_0", "1_1", "3_0")]
            assert found.count("F.dropout3d") == 2  # nothing is dropped in the first block
        case "vit":
            assert "self.encoder_layers_encoder_layer_0_self_attention" in found
        case "swin" | "swin_v2":
            assert {"torch.roll", "F.embedding", "@", "F.softmax"} <= set(found)
            assert ("torch.slice_scatter" in found) == (name == "swin_v2")
        case "shufflenet_v2_x0_5":
            assert found.count("F.channel_shuffle") == 16
        case "googlenet":
            assert len(graph.auxiliary) == 2


def test_every_parameter_is_told_where_it_went() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    from prunetrain.graph.trace import trace_with_state

    traced = trace_with_state(model, torch.zeros(1, 3, 64, 64))
    assert traced.names.keys() == model.state_dict().keys()
    assert all(traced.state[traced.names[name]].data_ptr() == tensor.data_ptr() for name, tensor in model.state_dict().items())
