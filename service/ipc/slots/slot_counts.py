"""Counts the slots of all arenas: how many rows wait and how many requests are in flight, per model.

A scrape's business only: nothing is counted while requests pass, so nothing can be counted twice or forgotten.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_state import State


class Census(NamedTuple):
    """By model. queued_rows: rows in the queue, in no batch yet. requests: queued, in a batch, or being answered."""

    queued_rows: np.ndarray
    requests: np.ndarray


def take_census(arenas: Sequence[MappedArena], models: int) -> Census:
    """Count the slots whose answer somebody waits for."""
    queued_rows = np.zeros(models)
    requests = np.zeros(models)
    for arena in arenas:
        wanted = (arena.state >= State.QUEUED) & (arena.given_up == 0)
        waiting = wanted & (arena.state == State.QUEUED)
        queued_rows += np.bincount(arena.model[waiting], arena.rows[waiting], models)
        requests += np.bincount(arena.model[wanted], minlength=models)
    return Census(queued_rows, requests)
