"""The two words for how the rows of a network belong together (rows.py), and the mend that names them."""

from typing import Final

INDEPENDENT: Final = "independent"
TOGETHER: Final = "together"
WAYS: Final = (INDEPENDENT, TOGETHER)

SERVE_TOGETHER: Final = (
    f"To have such a network served one request at a time, export it with --rows {TOGETHER} "
    f"(rows={TOGETHER!r})."
)
"""The end of every refusal of a network that does not answer row by row."""
