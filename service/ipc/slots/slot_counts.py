"""Counts the slots of all arenas: how many rows wait and how many requests are in flight, per model.

A scrape's business only: nothing is counted while requests pass, so nothing can be counted twice or forgotten.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foldserve.service.ipc.model_table import MappedModelTable
from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_state import State


class SlotCounts(NamedTuple):
    """By row of the model table. queued_rows: rows in the queue, in no batch yet. requests: queued, in a batch, or
    being answered."""

    queued_rows: np.ndarray
    requests: np.ndarray


def count_slots(arenas: Sequence[MappedArena], models: MappedModelTable) -> SlotCounts:
    """Count the slots whose answer somebody waits for, but for those of models that are gone."""
    rows = models.capacity
    generations = np.array(models.generation)
    queued_rows = np.zeros(rows)
    requests = np.zeros(rows)
    for arena in arenas:
        wanted = (arena.state >= State.QUEUED) & (arena.cancelled == 0)
        wanted &= generations[arena.model] == arena.generation
        waiting = wanted & (arena.state == State.QUEUED)
        queued_rows += np.bincount(arena.model[waiting], arena.rows[waiting], rows)
        requests += np.bincount(arena.model[wanted], minlength=rows)
    return SlotCounts(queued_rows, requests)
