"""How the rows of a network belong together: whether a server may put rows of many requests into one batch.

independent   dim 0 of every input counts rows, and the answer for a row is its own; requests share batches
together      an answer belongs to all that was sent with it: norms with the statistics of the batch, one number for
              the whole, graphs, networks without a dim of rows; each request is run by itself, in the network's shapes
"""

from typing import Final

from foldserve.models.errors import BadExample
from foldserve.service.artifact.manifest import INDEPENDENT, TOGETHER

ROW_MODES: Final = (INDEPENDENT, TOGETHER)

SERVE_TOGETHER: Final = (
    f"To have such a network served one request at a time, export it with --rows {TOGETHER} "
    f"(rows={TOGETHER!r})."
)
"""The end of every refusal of a network that does not answer row by row."""


def belong_together(word: object, max_batch_size: object) -> bool:
    """Whether word says so of the rows. Raises: BadExample for another word, or a batch size that contradicts it."""
    if word not in ROW_MODES:
        raise BadExample(f"rows is {word!r}; expected one of {', '.join(ROW_MODES)}")
    if word == TOGETHER and max_batch_size not in (None, 0):
        raise BadExample(
            f"max_batch_size is {max_batch_size!r} and rows is {TOGETHER!r}, of which a server runs one request at a "
            "time; expected one of the two: leave max_batch_size out"
        )
    return word == TOGETHER
