"""Each call as steps: what to send, when to send it again, and what came of it.

A call is a generator that asks for one thing at a time, and is told what came of it: Client carries the steps out in a
thread, AsyncClient in a coroutine. So what a call does is written once, and tested without either.

What is sent again: what the server refuses for now (429, 503), when it says so; and what got no answer because there
was no connection, or it ended. That is safe because a model keeps nothing of a request: what was run twice, or run and
not heard of, has changed nothing. Neither goes beyond the time of the call. A call whose time is over, and whatever
else a server says, ends it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from foldserve.service.client import answers, calls
from foldserve.service.client.answers import Answer, Label, Prediction
from foldserve.service.client.calls import Call
from foldserve.service.client.deadline import Deadline, TimeOver, pause_after_break_s
from foldserve.service.client.errors import BadInput, ServerRefused, ServerUnreachable, UntrustedServer
from foldserve.service.client.pictures import Picture, is_picture, picture
from foldserve.service.client.tensors import Inputs, needs_signature, tensors


@dataclass(frozen=True)
class Send:
    """Send this, for so long at most. Comes back with the Answer, or raises a ClientError or TimeOver."""

    call: Call
    timeout_s: float


@dataclass(frozen=True)
class Wait:
    """Do nothing for so long."""

    seconds: float


T = TypeVar("T")
Steps = Generator[Send | Wait, Answer | None, T]


@dataclass(frozen=True)
class How:
    """What may be said of any call. outputs: which, in which order; none for all. timeout_s: None for the client's."""

    version: str | int | None = None
    outputs: str | Sequence[str] = ()
    timeout_s: float | None = None
    request_id: str | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """As many as there are."""
        return (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs)

    def only_output(self) -> str | None:
        """Of a call that can be answered with one or all. Raises: BadInput."""
        if len(self.output_names) > 1:
            raise BadInput(
                "pictures and labels are answered with one output, or all; ask for one, or give an array"
            )
        return next(iter(self.output_names), None)


class Requests:
    """What is known of one server, and its calls.

    Args:
        timeout_s: of calls that say no other. retries: how often a call is sent again that got no answer.
    """

    def __init__(self, timeout_s: float, retries: int) -> None:
        self._timeout_s = timeout_s
        self._retries = retries
        self._input_datatypes: dict[tuple[str, str | int | None], dict[str, str]] = {}

    def predict(self, model: str, inputs: Inputs | Any, how: How) -> Steps[Prediction]:
        """Arrays, or one picture, to numbers."""
        deadline = self._deadline(how)
        if is_picture(inputs):
            return (yield from self._predict_picture(model, picture(inputs), how, deadline))
        if not needs_signature(inputs):
            return (yield from self._infer(model, inputs, {}, how, deadline))
        known = self._input_datatypes.get((model, how.version))
        if known is not None:
            try:
                return (yield from self._infer(model, inputs, known, how, deadline))
            except (ServerRefused, BadInput) as error:
                if error.status not in (None, 400):
                    raise
                # Another version may be served by now, whose input has another name or datatype.
                learned = yield from self._learn_inputs(model, how, deadline)
                if learned == known:
                    raise
                known = learned
        else:
            known = yield from self._learn_inputs(model, how, deadline)
        return (yield from self._infer(model, inputs, known, how, deadline))

    def classify(self, model: str, what: Any, top: int, how: How) -> Steps[list[list[Label]]]:
        """The largest scores with their labels: of a picture, or of each row of an array."""
        deadline, output = self._deadline(how), how.only_output()
        if is_picture(what):
            call, rows = calls.picture_call(model, how.version, picture(what), output, top), None
        else:
            known: dict[str, str] = {}
            if needs_signature({"": what}):
                known = yield from self._learn_inputs(model, how, deadline)
            (tensor,) = tensors(what if known else {"": what}, known, model)
            call = calls.labels_call(model, how.version, tensor.array, output, top)
            rows = len(tensor.array) if tensor.array.ndim else 1
        return (yield from self._ask(call, lambda answer: answers.read_labels(answer, rows), deadline, how))

    def info(self) -> Steps[Any]:
        """/info."""
        return self._ask(calls.info_call(), answers.read_json, self._deadline(How()), How())

    def metadata(self, model: str, how: How) -> Steps[Any]:
        """A model's versions, inputs and outputs."""
        return self._ask(calls.metadata_call(model, how.version), answers.read_json, self._deadline(how), how)

    def ready(self, model: str | None) -> Steps[bool]:
        """Whether the server, or a model, is ready; asked once."""
        call = calls.ready_call(model)
        try:
            answer = yield from _sent(Send(call, self._timeout_s))
        except (ServerUnreachable, TimeOver):
            return False
        return answers.read_ready(answer)

    def _deadline(self, how: How) -> Deadline:
        return Deadline(self._timeout_s if how.timeout_s is None else how.timeout_s)

    def _infer(
        self, model: str, inputs: Inputs, known: Mapping[str, str], how: How, deadline: Deadline
    ) -> Steps[Prediction]:
        sent = tensors(inputs, known, model)
        call = calls.infer_call(model, how.version, sent, how.output_names)
        return (yield from self._ask(call, answers.read_inference, deadline, how))

    def _predict_picture(self, model: str, given: Picture, how: How, deadline: Deadline) -> Steps[Prediction]:
        call = calls.picture_call(model, how.version, given, how.only_output(), None)
        answer = yield from self._ask(call, _checked, deadline, how)
        datatypes: dict[str, str] = {}
        if not answers.is_raw(answer):
            metadata = yield from self._ask(
                calls.metadata_call(model, how.version), answers.read_json, deadline, how
            )
            datatypes = answers.read_datatypes(metadata, "outputs")
        return answers.read_numbers(answer, datatypes)

    def _learn_inputs(self, model: str, how: How, deadline: Deadline) -> Steps[dict[str, str]]:
        """The datatypes of a model's inputs, from the server; kept for the next call."""
        call = calls.metadata_call(model, how.version)
        metadata = yield from self._ask(call, answers.read_json, deadline, replace(how, request_id=None))
        found = answers.read_datatypes(metadata, "inputs")
        self._input_datatypes[model, how.version] = found
        return found

    def _ask(self, call: Call, read: Callable[[Answer], T], deadline: Deadline, how: How) -> Steps[T]:
        """Send until there is an answer to keep. Raises: ClientError."""
        if how.request_id is not None:
            headers = {**call.headers, "X-Request-Id": calls.check_request_id(how.request_id)}
            call = replace(call, headers=headers)
        breaks = 0
        while True:
            left_s = deadline.left_s()
            try:
                return read((yield from _sent(Send(call.bounded(left_s), left_s))))
            except TimeOver:
                raise deadline.passed() from None
            except ServerRefused as error:
                pause_s = deadline.pause_after(error)
            except UntrustedServer:
                raise
            except ServerUnreachable:
                breaks += 1
                pause_s = pause_after_break_s(breaks)
                if breaks > self._retries or pause_s >= deadline.left_s():
                    raise
            yield Wait(pause_s)


def several(what: Any) -> Sequence[Any] | None:
    """Pictures in a list or tuple; None for what is one picture, or an array."""
    if isinstance(what, list | tuple) and what and all(map(is_picture, what)):
        return what
    return None


def _sent(step: Send) -> Steps[Answer]:
    answer = yield step
    if answer is None:
        raise RuntimeError("a step was carried out without its answer")
    return answer


def _checked(answer: Answer) -> Answer:
    answers.check(answer)
    return answer
