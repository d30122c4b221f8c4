"""A small transformer encoder that gives a sequence of token numbers one class; their length is free."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.models.activations import activation


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm and added to its input.

    Args:
        width: numbers per token.
        heads: attention heads; must divide width.
        hidden: width of the perceptron.
    Shape: in and out float (N, T, width).
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1. Differs: the norm comes first (Xiong et al.
    2020, arXiv:2002.04745), and GELU instead of ReLU.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), activation("gelu"), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.attention_norm(x))
        out: Tensor = x + self.perceptron(self.perceptron_norm(x))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        # (N, T, width) → three of (N, heads, T, width / heads)
        split = [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, -1)
        ]
        attended = F.scaled_dot_product_attention(*split)
        joined: Tensor = self.attention_output(attended.transpose(1, 2).flatten(2))
        return joined


class TransformerEncoder(nn.Module):
    """Token and position embeddings, encoder layers, a mean over the tokens, a linear layer.

    Args:
        vocabulary: V, token numbers are 0 to V - 1.
        width, heads, hidden: of every EncoderLayer; width even, heads divides width.
        layers: how many EncoderLayers.
        num_classes: K, numbers answered for a sequence.
        max_length: the longest sequence, in tokens.
    Shape: in int64 (N, T), out float (N, K); N >= 1, 1 <= T <= max_length, one length per batch.
    Raises: ValueError at construction when width is odd or heads does not divide it.
    Export: TorchScript and ONNX; N and T are dynamic. A token number outside 0 to V - 1 fails the run.
    Source: Vaswani et al. 2017, arXiv:1706.03762, sections 3.1 and 3.5 (sine positions).
    """

    positions: Tensor

    def __init__(
        self,
        vocabulary: int = 1000,
        width: int = 64,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 2,
        num_classes: int = 4,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        if width % 2 or width % heads:
            raise ValueError(
                f"TransformerEncoder got width {width} and {heads} heads; expected an even width, and a "
                "divisor of it"
            )
        self.embedding = nn.Embedding(vocabulary, width)
        # Computed, not learned: not in the state dict.
        self.register_buffer("positions", _sine_positions(max_length, width), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding(x) + self.positions[: x.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens)
        y: Tensor = self.output(self.norm(tokens).mean(dim=1))
        return y


def _sine_positions(length: int, width: int) -> Tensor:
    """Return float32 (length, width): sin in the even columns, cos in the odd ones, as section 3.5 has it."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angles = position * frequency
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


DYNAMIC_AXES = {"x": {1: "length"}}


def build() -> nn.Module:
    """Return the network for 1000 tokens, up to 512 of them a sequence, and 4 classes, with fresh weights."""
    return TransformerEncoder()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, int64 (2, 12): two sequences of 12 token numbers, 0 and 999 among them."""
    tokens = torch.randint(0, 1000, (2, 12))
    # Whoever draws more inputs from the range of this one draws from the whole vocabulary.
    tokens[0, 0], tokens[-1, -1] = 0, 999
    return (tokens,)
