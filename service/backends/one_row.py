"""A session of a model that counts no rows, as one whose batches have one row: a whole request.

Whoever makes batches needs no other way for such models; what the model itself is given and gives has its own dims.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from foldserve.service.backends.base import Session


class OneRowSession:
    """See base.Session. Takes and gives arrays of one row."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.notes: Sequence[str] = session.notes
        self.keeps_outputs = session.keeps_outputs

    def host_buffers(self, rows: int) -> None:
        """See base.Session."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        outputs = self._session.run({name: array.reshape(array.shape[1:]) for name, array in inputs.items()})
        return {name: np.asarray(array)[np.newaxis] for name, array in outputs.items()}
