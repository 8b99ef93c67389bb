"""A network out of its file and weights: the very tensors, and each layer sees its own only."""

from collections.abc import Callable

import pytest
import torch
from graphs import attention, auxiliary, gating, layer_norm, residual
from networks import new_state
from torch import Tensor, nn

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.render import render
from prunetrain.models.assembling import assemble

GRAPHS = {"residual": residual, "attention": attention, "layer norm": layer_norm, "gating": gating, "auxiliary": auxiliary}


def assembled(graph: LayerGraph, state: dict[str, Tensor]) -> nn.Module:
    return assemble(render(graph), "network.py", graph, state)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_very_tensors(name: str) -> None:
    graph = GRAPHS[name]()
    state = new_state(graph, 0)
    module = assembled(graph, state)
    found = module.state_dict()
    assert list(found) == list(state)
    for key, tensor in state.items():
        assert found[key].data_ptr() == tensor.data_ptr() and torch.equal(found[key], tensor)
    roles = {tensor.name: tensor.role for tensor in graph.declared}
    assert {name for name, _ in module.named_parameters(recurse=False)} == {name for name, role in roles.items() if role == "parameter"}
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_no_layer_looks_through_the_tensors_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = residual()
    state = new_state(graph, 0)
    seen: list[int] = []
    load = nn.Module.load_state_dict

    def counted(module: nn.Module, part: dict[str, Tensor], **options: bool) -> object:
        seen.append(len(part))
        return load(module, part, **options)

    monkeypatch.setattr(nn.Module, "load_state_dict", counted)
    assembled(graph, state)
    assert sum(seen) == len(state)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda state: state.pop("blocks_0_norm1.weight"), 'Missing key(s) in state_dict: "blocks_0_norm1.weight"'),
        (lambda state: state.pop("class_token"), 'Missing key(s) in state_dict: "class_token"'),
        (lambda state: state.update(extra=torch.zeros(1)), 'Unexpected key(s) in state_dict: "extra"'),
        (lambda state: state.update({"extra.weight": torch.zeros(1)}), 'Unexpected key(s) in state_dict: "extra.weight"'),
        (lambda state: state.update({"head.bias": torch.zeros(1)}), "size mismatch for head.bias"),
        (lambda state: state.update(class_token=torch.zeros(1)), "size mismatch for class_token"),
    ],
)
def test_fault_is_named_as_torch_names_it(edit: Callable[[dict[str, Tensor]], object], fault: str) -> None:
    graph = attention()
    state = new_state(graph, 0)
    edit(state)
    with pytest.raises(RuntimeError) as raised:
        assembled(graph, state)
    assert str(raised.value).startswith("Error(s) in loading state_dict for Attention:") and fault in str(raised.value)
