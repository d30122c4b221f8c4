"""Verdicts in a file, one a line, so that a long run can be cut off and goes on with what it has not tried."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from tests.models.export.wrong.trial import Verdict

_ROOT = Path(__file__).parents[4]
_CODE = ("models/**/*.py", "tests/models/export/wrong/*.py")


class Results:
    """The verdicts of one way to run (places and seed) of the code as it is now. Owns the file; None keeps nothing."""

    def __init__(self, path: Path | None, way: str) -> None:
        self._path = path
        self._run = f"{_code()} {way}"
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        entries = [entry for entry in map(json.loads, lines) if entry["run"] == self._run]
        self._verdicts = [Verdict(**entry["verdict"]) for entry in entries if "verdict" in entry]
        self._whole = [tuple(entry["whole"]) for entry in entries if "whole" in entry]

    def of(self, network: str, precision: str) -> list[Verdict]:
        """What an earlier run has found."""
        return [v for v in self._verdicts if (v.network, v.precision) == (network, precision)]

    def is_whole(self, network: str, precision: str) -> bool:
        """Whether that is all there is to find."""
        return (network, precision) in self._whole

    def add(self, verdicts: Iterable[Verdict], network: str, precision: str) -> list[Verdict]:
        """Keep each as it comes; all of them."""
        known, found = set(self.of(network, precision)), []
        for verdict in verdicts:
            found.append(verdict)
            if verdict not in known:
                self._write({"verdict": asdict(verdict)})
        self._write({"whole": [network, precision]})
        return found

    def _write(self, entry: dict[str, object]) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"run": self._run, **entry}) + "\n")


def _code() -> str:
    """What stands for the proof and the faults: a verdict is worth nothing for another one."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(path for pattern in _CODE for path in _ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
