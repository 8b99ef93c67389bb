"""Sparse storage and layers: what is read back is what was saved, what is computed is what the dense network computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import residual
from networks import images_for, network, new_state
from torch import nn

from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.methods.masks import Masks
from prunetrain.methods.registry import decide
from prunetrain.methods.semi_structured import keep_two_of_four
from prunetrain.sparse import storage
from prunetrain.sparse.csr import csr_matrix, sparsity, to_csr
from prunetrain.sparse.layers import SparseConv2d, SparseLinear, with_sparse_layers
from prunetrain.sparse.semi_structured import check_device, follows_two_of_four, with_semi_structured_layers
from prunetrain.sparse.storage import file_sizes, load_sparse, pack, sparse_bytes


def pruned(rate: float) -> dict[str, torch.Tensor]:
    graph = residual()
    state = new_state(graph, 0)
    masks = decide("magnitude", graph, state, rate)
    assert isinstance(masks, Masks)
    return masks.applied(state)


# Compressed rows.


def test_rows_by_hand() -> None:
    matrix = to_csr(torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]]]))
    assert matrix.crow_indices().tolist() == [0, 1, 3]
    assert matrix.col_indices().tolist() == [1, 0, 3]
    assert matrix.values().tolist() == [2, 3, 4]
    assert matrix.crow_indices().dtype == matrix.col_indices().dtype == torch.int32
    assert sparsity(matrix.to_dense()) == 5 / 8


@pytest.mark.parametrize("columns", [[1, 4], [1, -1]])
def test_columns_outside_are_refused(columns: list[int]) -> None:
    with pytest.raises(RuntimeError):
        csr_matrix(torch.tensor([0, 1, 2]), torch.tensor(columns), torch.ones(2), (2, 4))


# Files.


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_read_is_what_was_saved(tmp_path: Path, rate: float, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in pruned(rate).items()}
    (tmp_path / "weights.pt").write_bytes(sparse_bytes(state))
    read = load_sparse(tmp_path / "weights.pt")
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_only_what_is_smaller_is_stored_as_rows() -> None:
    weight = torch.zeros(4, 300)  # a number costs 4 + 2 bytes, a row 4: 20 + 6 n against 4,800
    weight.view(-1)[:796] = 1
    assert set(pack({"a": weight, "b": torch.zeros(900)})["csr"]) == {"a"}
    weight.view(-1)[:797] = 1
    assert set(pack({"a": weight})["dense"]) == {"a"}
    kinds = {width: pack({"w": torch.eye(1, width)})["csr"]["w"]["columns"].dtype for width in (256, 257, 32768, 32769)}
    assert kinds == {256: torch.uint8, 257: torch.int16, 32768: torch.int16, 32769: torch.int32}


def test_sizes_of_files(tmp_path: Path) -> None:
    """A third of the room at 90% zeros is what 4 + 2 bytes a number come to with 2% for everything else."""
    state = {"fc.weight": torch.zeros(1000, 1000)}
    state["fc.weight"].view(-1)[::10] = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    sizes = file_sizes(state)
    (tmp_path / "sparse.pt").write_bytes(sparse_bytes(state))
    torch.save(state, tmp_path / "dense.pt")
    assert sizes.csr == pytest.approx((tmp_path / "sparse.pt").stat().st_size, rel=1e-3)
    assert sizes.dense == pytest.approx((tmp_path / "dense.pt").stat().st_size, rel=1e-3)
    assert sizes.csr == pytest.approx(100_000 * 6 + 4 * 1001, rel=0.02)
    assert sizes.dense_zlib < sizes.dense
    assert sizes.csr_zlib < sizes.csr


def damage_mark(content: dict[str, Any]) -> None:
    content["mark"] = "something else"


def damage_columns(content: dict[str, Any]) -> None:
    content["csr"]["fc.weight"]["columns"][0] = 200


def damage_starts(content: dict[str, Any]) -> None:
    content["csr"]["fc.weight"]["starts"][-1] += 1


def damage_shape(content: dict[str, Any]) -> None:
    content["csr"]["fc.weight"]["shape"] = (3, 3)


def damage_sizes(content: dict[str, Any]) -> None:
    content["csr"]["fc.weight"]["shape"] = (-10, -16)


def damage_numbers(content: dict[str, Any]) -> None:
    content["csr"]["fc.weight"]["shape"] = (10.0, 16.0)


def damage_dimensions(content: dict[str, Any]) -> None:
    content["csr"]["fc.weight"]["shape"] = ()


def damage_names(content: dict[str, Any]) -> None:
    content["names"].append("fc.other")


@pytest.mark.parametrize(
    "damage",
    [damage_mark, damage_columns, damage_starts, damage_shape, damage_sizes, damage_numbers, damage_dimensions, damage_names],
)
def test_damaged_files_are_one_line(tmp_path: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    content = pack(pruned(0.9))
    damage(content)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as error:
        load_sparse(tmp_path / "weights.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tensors", [1, 3])
def test_weights_that_do_not_fit_into_memory_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: int) -> None:
    """Zeros take no room in a file; all tensors count together."""
    content = pack({f"{number}.weight": torch.zeros(2, 3000 // tensors) for number in range(tensors)})
    torch.save(content, tmp_path / "weights.pt")
    assert sum(weight.numel() for weight in load_sparse(tmp_path / "weights.pt").values()) == 6000
    monkeypatch.setattr(storage, "available_memory", lambda: 20_000)
    with pytest.raises(CheckpointError) as error:
        load_sparse(tmp_path / "weights.pt")
    assert str(error.value) == f"{tmp_path / 'weights.pt'}: its weights take 24 kB, and 20 kB of memory are free"


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(CheckpointError, match="damaged, or not a file of sparse weights"):
        load_sparse(tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        load_sparse(tmp_path / "absent.pt")


# Layers.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (0, 6)])
def test_sparse_linear_computes_what_the_dense_one_does(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=bias, dtype=torch.float64)
    layer.weight.data[:, ::2] = 0
    images = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(SparseLinear(layer)(images), layer(images), rtol=1e-12, atol=1e-14)
    assert SparseLinear(layer)(images).shape == layer(images).shape


@pytest.mark.parametrize(
    "settings", [{}, {"padding": 1}, {"stride": 2, "padding": (1, 0)}, {"dilation": (1, 2), "bias": False}, {"kernel_size": (1, 3)}]
)
def test_sparse_conv_computes_what_the_dense_one_does(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, **({"kernel_size": 3} | settings), dtype=torch.float64)
    layer.weight.data[:, ::2] = 0
    images = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    assert torch.allclose(SparseConv2d(layer)(images), layer(images), rtol=1e-12, atol=1e-13)


def test_a_network_with_sparse_layers() -> None:
    graph = residual()
    model = network(graph, pruned(0.9)).eval()
    same = nn.Conv2d(8, 8, 3, padding="same", dtype=torch.float64)  # cannot be unfolded, and stays dense
    nn.init.zeros_(same.weight)
    model.set_submodule("layer1_0_conv2", same)
    sparse = with_sparse_layers(model, least=0.85)
    images = images_for(graph)
    with torch.no_grad():
        assert torch.allclose(sparse(images), model(images), rtol=1e-9)
    kinds = [type(layer) for layer in sparse.modules()]
    assert (kinds.count(SparseConv2d), kinds.count(SparseLinear), kinds.count(nn.Conv2d)) == (5, 1, 1)
    assert not any(isinstance(layer, SparseConv2d | SparseLinear) for layer in model.modules())
    assert with_sparse_layers(model, least=0.99).state_dict().keys() == model.state_dict().keys()


# 2:4.


def test_the_pattern_by_hand() -> None:
    assert follows_two_of_four(torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 3]]))
    assert not follows_two_of_four(torch.tensor([[1.0, 0, 0, 2, 1, 0, 1, 3]]))
    assert not follows_two_of_four(torch.zeros(4, 6))
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    assert follows_two_of_four(weight * keep_two_of_four(weight))


def test_two_of_four_needs_a_gpu_that_can() -> None:
    with pytest.raises(ConfigError, match="need an NVIDIA GPU of compute capability"):
        with_semi_structured_layers(nn.Linear(64, 64))
    with pytest.raises(ConfigError, match="but the network is on meta"):
        check_device(torch.device("meta"))


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs a GPU of capability 8.0")
def test_semi_structured_layers_compute_what_dense_ones_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).cuda()
    with pytest.raises(ConfigError, match="prune with method 2:4 first"):
        with_semi_structured_layers(model)
    model[0].weight.data *= keep_two_of_four(model[0].weight.data)
    images = torch.randn(32, 128, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        assert torch.allclose(with_semi_structured_layers(model)(images), model.half()(images), rtol=1e-2, atol=1e-2)
