"""The steps of ADMM pruning other than training, as pure functions.

Zhang, Ye, Zhang, Tang, Wen, Fardad and Wang, "A systematic DNN weight pruning framework using alternating direction method of multipliers",
2018, arXiv 1804.03294. Minimise loss(W) subject to W = Z, where Z has the wanted sparsity, with scaled duals U:

    W: some epochs of training on loss + rho / 2 * ||W - Z + U||^2
    Z: the projection of W + U onto that sparsity: the largest weights stay, the rest are zero
    U: U + W - Z

In: weights by name. Out: new Z and U. Residuals as in Boyd et al., "Distributed optimization and statistical learning via the alternating
direction method of multipliers", 2011, section 3.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.method_settings import check_share
from prunetrain.methods.magnitude import magnitude
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options

Projection: TypeAlias = Callable[[Mapping[str, Tensor]], Masks]
"""A function from weights to the masks of those that the projection leaves; the others become zero."""


@dataclass(frozen=True)
class AdmmState:
    """Z and U of each weight, with its shape."""

    z: Mapping[str, Tensor]
    u: Mapping[str, Tensor]


@dataclass(frozen=True)
class Residuals:
    """Norms over all weights: primal ||W - Z||, dual rho ||Z - previous Z||, and relative ||W - Z|| / ||W||, the cost of a hard prune."""

    primal: float
    dual: float
    relative: float


def projection(graph: LayerGraph, rate: float, options: Options) -> Projection:
    """Return the projection that leaves the largest absolute weights, or with `options.structure` the slices of largest norm.

    Raises:
        ConfigError: for a rate outside [0, 1), or options that do not fit the network.
    """
    check_share("rate", rate)
    options.check_fits(graph)
    return lambda tensors: magnitude(graph, tensors, rate, options)


@torch.no_grad()
def initial_state(weights: Mapping[str, Tensor], project: Projection) -> AdmmState:
    """Return the first state, for the weights that have a mask: Z = the projection of W, U = 0."""
    masks = project(weights)
    return AdmmState(
        z={name: weights[name].detach().masked_fill(~mask, 0) for name, mask in masks.keep.items()},
        u={name: torch.zeros_like(weights[name]) for name in masks.keep},
    )


@torch.no_grad()
def update_state(weights: Mapping[str, Tensor], state: AdmmState, project: Projection) -> AdmmState:
    """Return the state after the Z step and then the U step."""
    moved = {name: tensor.detach() + state.u[name] if name in state.u else tensor.detach() for name, tensor in weights.items()}
    masks = project(moved)
    z = {name: moved[name].masked_fill(~masks.keep[name], 0) for name in state.z}
    return AdmmState(z, {name: moved[name] - z[name] for name in z})


def rescale_duals(state: AdmmState, factor: float) -> AdmmState:
    """Return the state after rho is multiplied by a factor: rho * U must stay the same, so U is divided (Boyd et al., section 3.4.1)."""
    return AdmmState(state.z, {name: u / factor for name, u in state.u.items()})


@torch.no_grad()
def add_gradient_(weights: Mapping[str, Tensor], state: AdmmState, rho: float) -> None:
    """Add rho (W - Z + U), the gradient of rho / 2 ||W - Z + U||^2, to every weight's `.grad`."""
    gradients = {name: gradient for name in state.z if (gradient := weights[name].grad) is not None}
    if gradients:
        pulls = torch._foreach_sub([weights[name] for name in gradients], [state.z[name] for name in gradients])
        torch._foreach_add_(pulls, [state.u[name] for name in gradients])
        torch._foreach_add_(list(gradients.values()), pulls, alpha=rho)


@torch.no_grad()
def measure_residuals(weights: Mapping[str, Tensor], before: AdmmState, now: AdmmState, rho: float) -> Residuals:
    """Measure how far W is from Z, and Z from the previous Z."""
    primal = _norm({name: weights[name] - z for name, z in now.z.items()})
    dual = rho * _norm({name: z - before.z[name] for name, z in now.z.items()})
    size = _norm({name: weights[name] for name in now.z})
    return Residuals(primal, dual, primal / size if size else 0.0)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5)
