"""What a server says of a model to whoever sends it pictures: how one becomes the input, and the labels.

Reads the answer of GET /info (frontend/pages/info.py writes it). Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.pictures import PictureInput

_UNKNOWN: Final[Mapping[str, Any]] = {"default_version": None, "versions": ()}


@dataclass(frozen=True)
class ModelCard:
    """image, labels: as in the manifest; None where the model has none."""

    image: PictureInput | None = None
    labels: tuple[str, ...] | None = None

    def top(self, scores: np.ndarray, most: int) -> list[tuple[str, float]]:
        """The labels of the largest scores of one row, largest first; empty where the labels are not of these."""
        if self.labels is None or scores.shape != (len(self.labels),):
            return []
        best = np.argsort(-scores, kind="stable")[:most]
        return [(self.labels[number], float(scores[number])) for number in best]


def model_card(info: Any, model: str, version: str | None) -> ModelCard:
    """The card of a version, the default one for None; an empty card for what /info does not have.

    Raises: ValueError for what is not a response of /info.
    """
    models = info.get("models") if isinstance(info, Mapping) else None
    if not isinstance(models, Sequence):
        raise ValueError("no models")
    described: Mapping[str, Any] = next((one for one in models if one["name"] == model), _UNKNOWN)
    wanted = version or described["default_version"]
    for one in described["versions"]:
        if one["version"] == wanted:
            image, labels = one["manifest"].get("image"), one["manifest"].get("labels")
            return ModelCard(
                None if image is None else PictureInput.from_manifest(image),
                None if labels is None else tuple(labels),
            )
    return ModelCard()
