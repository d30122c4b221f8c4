"""Which of the two files an export writes: both, the one that was asked for, or the one that can be written.

    asked for                  --only torchscript, --only onnx; bf16 is TorchScript alone (precision.py)
    cannot be written or run   the export goes on with the other file, and says so (`not_written` in the manifest)
    answers wrong              the whole export fails: what is wrong in one file may be wrong in the network

Knows nothing of how a file is written; a step of the pipeline is run by attempt().
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from foldserve.models.errors import FormNotUsable, FormNotWritten, NotCapturable, ParityFailed
from foldserve.models.export.precision.precision import Precision

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """One of the two forms of a network. word: in --only and in the manifest's `parity`. file: its file's name."""

    word: str
    file: str


TORCHSCRIPT = Form("torchscript", "model.pt")
ONNX = Form("onnx", "model.onnx")
_FORMS = (TORCHSCRIPT, ONNX)


@dataclass
class Forms:
    """The forms of one export. not_written: the file of each that is not written, and the reason.

    asked: whether the user chose one.
    """

    asked: bool = False
    not_written: dict[str, str] = field(default_factory=dict)

    def has(self, form: Form) -> bool:
        """Whether form is to be written, or has been."""
        return form.file not in self.not_written

    def attempt(self, form: Form, folder: Path, step: Callable[[], T]) -> T | None:
        """What step gives, which writes or verifies form in folder; None where form is not to be written.

        Where step cannot write it, or nothing can run it, its files are removed.
        Raises: NotCapturable where no form is left; ParityFailed with the way round, if there is one.
        """
        if not self.has(form):
            return None
        try:
            return step()
        except FormNotWritten as error:
            others = [other for other in _FORMS if other is not form and self.has(other)]
            self.not_written[form.file] = str(error)
            if not others:
                raise NotCapturable(self._nothing_left(form)) from error
            for path in folder.glob(f"{form.file}*"):  # weights may lie beside it
                path.unlink()
            return None
        except ParityFailed as error:
            raise ParityFailed(f"{error}{self._way_round(form)}") from error

    def _nothing_left(self, form: Form) -> str:
        if self.asked:
            return (
                f"{form.file} is the only file asked for, and it cannot be written: {self.not_written[form.file]}. "
                f"Leave --only {form.word} out to export the other file alone."
            )
        reasons = " ".join(f"{file}: {reason}." for file, reason in self.not_written.items())
        return f"neither file can be written. {reasons} Write that step with other torch functions."

    def _way_round(self, form: Form) -> str:
        other = next(other for other in _FORMS if other is not form)
        if self.has(other):
            return (
                f" The one way round is to export {other.file} alone, if that is right: --only {other.word} (in Python "
                f"only={other.word!r})."
            )
        return "" if self.asked else f" {other.file} alone is no way round: {self.not_written[other.file]}."


def chosen_forms(only: object, precision: Precision, opset: int | None) -> Forms:
    """The forms to write. only: the word of one, or None for both. Raises: FormNotUsable."""
    not_written = {}
    if not precision.onnx:
        not_written[ONNX.file] = (
            f"ONNX Runtime's CPU provider has no {precision.word} kernels, so it could not be compared"
        )
    if only is None:
        return Forms(False, not_written)
    chosen = next((form for form in _FORMS if form.word == only), None)
    if chosen is None:
        words = " or ".join(form.word for form in _FORMS)
        raise FormNotUsable(f"only is {only!r}; expected {words}, or nothing for both files")
    if chosen.file in not_written:
        raise FormNotUsable(
            f"--only {chosen.word} is asked for, but precision {precision.word} writes no ONNX file: "
            f"{not_written[chosen.file]}. Use precision fp16, or leave --only out."
        )
    if opset is not None and chosen is not ONNX:
        raise FormNotUsable(
            f"opset {opset} is asked for, but --only {chosen.word} writes no ONNX file. Leave one of them out."
        )
    asked = {form.file: f"{chosen.file} alone was asked for" for form in _FORMS if form is not chosen}
    return Forms(True, {**asked, **not_written})
