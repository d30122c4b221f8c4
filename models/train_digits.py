"""Train models/digits.py on the digits of scikit-learn: python -m foldserve.models.train_digits

1437 digits to train, 360 held out; the held-out ones are looked at once, when training has ended. One thread,
every random choice from one seed: the same machine writes the same bytes each time. It takes a few seconds
on one core, and needs scikit-learn (extra `demo`).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from foldserve.models.digits import WEIGHTS, Digits
from foldserve.models.errors import MissingExtra

SEED = 0
EPOCHS = 30
ROWS = 64  # per step
PEAK_RATE = 0.01
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Split:
    """pixels float32 (N, 1, 8, 8) from 0 to 16, and digits int64 (N,), to train with and held out."""

    pixels: Tensor
    digits: Tensor
    held_out_pixels: Tensor
    held_out_digits: Tensor


def split() -> Split:
    """Return scikit-learn's 1797 digits, a fifth of each class held out; always the same split.

    Raises: MissingExtra when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtra(
            f"the digits come with scikit-learn ({error}); install it with: pip install 'foldserve[demo]'"
        ) from error
    loaded = load_digits()
    pixels, held_out_pixels, digits, held_out_digits = train_test_split(
        loaded.images[:, None], loaded.target, test_size=0.2, random_state=SEED, stratify=loaded.target
    )
    return Split(
        torch.as_tensor(pixels, dtype=torch.float32),
        torch.as_tensor(digits, dtype=torch.int64),
        torch.as_tensor(held_out_pixels, dtype=torch.float32),
        torch.as_tensor(held_out_digits, dtype=torch.int64),
    )


def train(
    pixels: Tensor, digits: Tensor, epochs: int = EPOCHS, seed: int = SEED
) -> tuple[Digits, list[float]]:
    """Return a trained network, in eval mode, and the mean loss of each epoch.

    Args:
        pixels: float32 (N, 1, 8, 8) from 0 to 16.
        digits: int64 (N,), 0 to 9.
        epochs: passes over all rows.
        seed: decides first weights, order and shifts. Torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Digits().train()
        # The last, smaller batch of an epoch is left out; it is another one in the next epoch.
        batches = len(pixels) // ROWS
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * batches)
        losses = []
        for _ in range(epochs):
            total = torch.zeros(())
            order = torch.randperm(len(pixels))
            for i in range(batches):
                rows = order[i * ROWS : (i + 1) * ROWS]
                loss = F.cross_entropy(network(_shifted(pixels[rows])), digits[rows], label_smoothing=0.1)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                total += loss.detach()
            losses.append(float(total) / batches)
    return network.eval(), losses


def _shifted(pixels: Tensor) -> Tensor:
    """Move each picture by up to one pixel each way, at random: as people write, not always in the middle."""
    padded = F.pad(pixels, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(pixels)))
    line = torch.arange(8)
    rows = torch.arange(len(pixels))[:, None, None]
    return padded[rows, 0, (down[:, None] + line)[:, :, None], (right[:, None] + line)[:, None, :]][:, None]


def accuracy(network: Digits, pixels: Tensor, digits: Tensor) -> float:
    """Return the share of pictures, 0 to 1, whose largest logit is the right digit."""
    with torch.inference_mode():
        return float((network(pixels).argmax(1) == digits).double().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the losses and the held-out accuracy, write the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m foldserve.models.train_digits", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name(WEIGHTS), help="default: %(default)s"
    )
    output: Path = parser.parse_args(arguments).output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        digits = split()
    except MissingExtra as error:
        print(error, file=sys.stderr)
        return 2
    started_s = time.monotonic()
    network, losses = train(digits.pixels, digits.digits)
    for epoch, loss in enumerate(losses, start=1):
        print(f"epoch {epoch:2d}  loss {loss:.4f}")
    print(f"trained in {time.monotonic() - started_s:.0f} s")
    print(f"accuracy, trained digits:  {accuracy(network, digits.pixels, digits.digits):.4f}")
    print(
        f"accuracy, held-out digits: {accuracy(network, digits.held_out_pixels, digits.held_out_digits):.4f}"
    )
    safetensors.torch.save_file(network.state_dict(), output)
    print(f"wrote {output}, {output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
