"""Let a network take pictures as bytes: a quarter of the body, and nothing for the client to normalise."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ImageInput(nn.Module):
    """Normalise uint8 pictures inside the graph, then run the network: network((pictures - mean) / std).

    Args:
        network: takes float (N, C, H, W).
        mean, std: in units of a byte, 0 to 255: one number, or one per channel. For constants published for
            pictures in [0, 1] (mean 0.485 ...), multiply by 255.
    Shape: in uint8 (N, C, H, W), out whatever network answers.
    Raises: ValueError at construction when a std is not above 0 or mean and std differ in length.
    Export: TorchScript and ONNX; what is dynamic in network is dynamic here. The arithmetic has the dtype of
        mean, so .double() makes all of it float64.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: float | Sequence[float], std: float | Sequence[float]
    ) -> None:
        super().__init__()
        means = torch.tensor(mean, dtype=torch.float32).reshape(-1)
        stds = torch.tensor(std, dtype=torch.float32).reshape(-1)
        if means.shape != stds.shape:
            raise ValueError(
                f"ImageInput got mean {mean} and std {std}; expected one number each, or one per channel"
            )
        if not bool((stds > 0).all()):
            raise ValueError(
                f"ImageInput got std {std}; expected numbers above 0, in units of a byte (0 to 255)"
            )
        self.network = network
        # Constants of the wrapper, not weights: the state dict stays the network's, under "network.".
        self.register_buffer("mean", means[:, None, None], persistent=False)
        self.register_buffer("std", stds[:, None, None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        y: Tensor = self.network((pictures.to(self.mean.dtype) - self.mean) / self.std)
        return y
