"""Whether a model's outputs count rows, and whether a row's answer is its own: what makes it safe to run the requests
of several clients together.

A model that gives an output for each thing it found, or in an order of its own, would have its outputs dealt out to
the wrong requests; in one that mixes rows, a client's answer depends on the others'. What a file says of itself is not
enough, so it is run: rows alone, and together, of several kinds.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from foldserve.service.artifact.difference import relative_error
from foldserve.service.artifact.signature import ANY, ONE_BY_ONE, Signature
from foldserve.service.backends import LoadError, Session
from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.repository.buckets import bucket_for, padded
from foldserve.service.repository.trial_rows import Rows, one, repeated

Arrays = Mapping[str, np.ndarray]

log = logging.getLogger("foldserve.repository")

# Rounding differs with the number of rows, and more so where a model rounds to 8 bits by the largest value of the whole
# batch (dynamic quantisation: up to 0.03 seen). What mixes rows differs by more: a mean over two rows by half.
_MOST_MIXED = 0.05
_MOST_MIXED_WHOLE = 0.5
"""Of whole numbers, the part that may differ: where two classes are nearly equal, rounding decides which is named."""
_WORTH_TELLING = 0.01


class RowCheck:
    """The check of one session.

    Args:
        name: of the model's file, as errors name it.
        buckets: allowed batch sizes; none = any up to `largest`.
    """

    def __init__(
        self, name: str, signature: Signature, session: Session, buckets: Sequence[int], largest: int
    ) -> None:
        self._name = name
        self._signature = signature
        self._session = session
        self._buckets = buckets
        self._largest = largest

    def check(self, kinds: Iterable[Rows]) -> bool:
        """Run rows of each kind; the first kind that the model takes is run in more sizes, and compared.

        Returns: False when the model took none of them, so that nothing is known.
        Raises: LoadError when an output does not count rows, or rows are mixed; DeviceLost.
        """
        known = False
        for rows in kinds:
            try:
                if known:
                    self._count(rows)
                else:
                    self._compare(rows)
            except (LoadError, DeviceLost):
                raise
            except Exception as error:  # the model takes no such rows, or there is no room for them
                log.debug("%s: rows of one kind could not be tried: %s", self._name, error)
                continue
            known = True
        return known

    def _count(self, rows: Rows) -> None:
        """A row alone, two equal ones, and several."""
        for batch in (one(rows, 0), one(rows, 0, 2), rows):
            if len(next(iter(batch.values()))) <= self._largest:
                self._run(batch)

    def _compare(self, rows: Rows) -> None:
        """Each row alone, and then together in several sizes; the answers must be the same."""
        count = len(next(iter(rows.values())))
        alone = self._alone(rows, count)
        if self._largest > 1:
            self._run(one(rows, 0, 2))
        for size in self._sizes(count):
            try:
                together = self._run(repeated(rows, size))
            except OutOfMemory:  # it is never run at that size either
                continue
            except (LoadError, DeviceLost):
                raise
            except Exception as error:
                raise LoadError(
                    f"{self._name} takes each of {count} rows alone and fails on them in a batch of {size}; expected "
                    f"any number of rows: export the model with a dynamic dim 0 all through, or {ONE_BY_ONE}",
                    error,
                ) from error
            found = max(self._differences(together, alone, size), default=("", 0.0, 0.0), key=_by_excess)
            self._judge(*found, size, lambda: self._alone(rows, count), alone)

    def _alone(self, rows: Rows, count: int) -> list[Arrays]:
        return [
            {name: array.copy() for name, array in self._run(one(rows, row)).items()} for row in range(count)
        ]

    def _sizes(self, count: int) -> Iterator[int]:
        """Of the batches, in rows: the largest first, for the memory that it takes will do for the others."""
        wanted = {self._largest, *range(2, count + 1)}
        yield from sorted((size for size in wanted if 1 < size <= self._largest), reverse=True)

    def _run(self, rows: Rows) -> Arrays:
        """The answers for rows, padded to a bucket. Raises: LoadError when an output does not count them."""
        count = len(next(iter(rows.values())))
        size = bucket_for(count, self._buckets)
        outputs = self._session.run({name: padded(array, size) for name, array in rows.items()})
        check_outputs(self._name, self._signature, outputs, size)
        return {spec.name: outputs[spec.name][:count] for spec in self._signature.outputs}

    def _differences(
        self, together: Arrays, alone: Sequence[Arrays], size: int
    ) -> Iterator[tuple[str, float, float]]:
        """Each output's name, how far it is from what its rows got alone, and how far it may be."""
        for name, got in together.items():
            parts = [alone[row % len(alone)][name] for row in range(size)]
            if len({part.shape for part in [*parts, got[:1]]}) > 1:
                continue  # sizes beside the rows that hang on values: padded to the longest of a batch
            floats = got.dtype.kind == "f"
            off = relative_error(got, np.concatenate(parts))
            yield name, off, _MOST_MIXED if floats else _MOST_MIXED_WHOLE

    def _judge(
        self,
        output: str,
        off: float,
        most: float,
        size: int,
        again: Callable[[], list[Arrays]],
        alone: Sequence[Arrays],
    ) -> None:
        if off <= min(most, _WORTH_TELLING):
            return
        if not _alike(again(), alone):
            log.warning(
                "%s gives other answers each time to the same rows (it draws random numbers, or keeps something from "
                "run to run), so it is not known whether a row's answer depends on the rows it is run with",
                self._name,
            )
            return
        if off <= most:
            log.warning(
                "%s: output %r of a row is off by %.2g of the largest value when it is run with others (of %d rows): "
                "as with dynamic quantisation; if that matters, %s",
                *(self._name, output, off, size, ONE_BY_ONE),
            )
            return
        raise LoadError(
            f"{self._name} mixes rows: output {output!r} of a row is off by {off:.2g} of the largest value when it is "
            f"run in a batch of {size} rows instead of alone, so an answer would depend on other clients' requests; "
            "expected the same answer: export the model in evaluation mode, without anything over dim 0, or "
            f"{ONE_BY_ONE}"
        )


def check_outputs(name: str, signature: Signature, outputs: Arrays, rows: int) -> None:
    """Raise LoadError unless a batch's outputs have its rows, and the signature's datatypes and dims."""
    for spec in signature.outputs:
        array = outputs[spec.name]
        fits = array.ndim == len(spec.batch_shape) and all(
            want in (ANY, got) for got, want in zip(array.shape, spec.batch_shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            raise LoadError(
                f"{name} gives output {spec.name!r} as {array.dtype} {list(spec.of_batch(array.shape))}; expected "
                f"{spec.datatype} {list(spec.shape)}, as the signature says: fix it in config.yaml, or "
                "export the model again"
            )
        if len(array) != rows:
            raise LoadError(
                f"{name} gives output {spec.name!r} with {len(array)} rows for a batch of {rows}: its dim 0 does not "
                "count rows, so the answers of requests that are run together could not be separated; expected as "
                f"many as the inputs have: export the model with an output for each row, or {ONE_BY_ONE}"
            )


def _alike(one: Sequence[Arrays], other: Sequence[Arrays]) -> bool:
    return all(
        relative_error(mine[name], theirs[name]) <= _WORTH_TELLING
        for mine, theirs in zip(one, other, strict=True)
        for name in mine
    )


def _by_excess(found: tuple[str, float, float]) -> float:
    _, off, most = found
    return off / most
