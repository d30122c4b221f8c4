"""What several tests of models/ share: batch norms with statistics that a wrong fold cannot survive."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def randomise_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm (and affine instance norm) random statistics, in place; return module.

    Fresh statistics (mean 0, var 1, gamma 1, beta 0) hide most mistakes of a fold. Here the mean lies in
    [-1, 1], the variance in [0.5, 2], |gamma| in [0.5, 1.5], beta in [-0.5, 0.5], and the first channel has
    a negative gamma: a fold that moves a scale through an activation, or through a max, breaks on it.
    The values depend only on seed and on the order of module.modules().
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        values = torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return values.to(like)

    with torch.no_grad():
        for norm in module.modules():
            if not isinstance(norm, _NormBase):
                continue
            if norm.running_mean is not None:
                norm.running_mean.copy_(uniform(norm.running_mean, -1.0, 1.0))
                norm.running_var.copy_(uniform(norm.running_var, 0.5, 2.0))
            if norm.weight is not None:
                norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
                norm.weight[0] *= -1
                norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))
    return module
