"""What comes back from the engine for one request: its outputs or its error, and where the time went.

Plain data without behaviour, made by the side that runs the model and read by the side that answers.
"""

from dataclasses import dataclass, field

import numpy as np

from service.errors import ServiceError


@dataclass(frozen=True)
class StageTimes:
    """Seconds that a request spent in each stage behind the front; decode and encode are the front's own."""

    queue: float = 0.0
    """From the request's arrival in the queue to its being taken into a batch."""
    gather: float = 0.0
    """Copying the rows of the batch together and padding them."""
    run: float = 0.0
    """The model's run over the batch."""
    scatter: float = 0.0
    """Cutting the batch's outputs into the requests' parts."""


@dataclass(frozen=True)
class Outcome:
    """One request's end: exactly one of outputs and error is set.

    outputs: output name -> array whose first dim is the request's rows.
    batch_rows: rows (of all requests, without padding) in the batch that this request ran in; 0 when it
        never ran.
    held: the outputs are large and lie where they were made; Engine.encode() lets go of them.
    """

    outputs: dict[str, np.ndarray] | None
    error: ServiceError | None = None
    stages: StageTimes = field(default_factory=StageTimes)
    batch_rows: int = 0
    held: object | None = None

    def __post_init__(self) -> None:
        if (self.outputs is None) == (self.error is None):
            raise ValueError("an outcome holds either outputs or an error")
