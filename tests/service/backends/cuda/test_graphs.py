"""Which buckets become CUDA graphs, and why the rest do not."""

import weakref
from dataclasses import dataclass, field

import pytest

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends import LoadError, SessionOptions
from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.backends.cuda.graphs import reason_against, with_graphs

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))
FIXED = Signature((X,), (Y,))


@dataclass
class Fake:
    """A session that has no room from `full_from` rows on, and fails with `error` at `fails_at` rows."""

    graphs: bool
    no_graphs: str = ""
    full_from: int = 1 << 30
    fails_at: int = 0
    error: Exception = field(default_factory=lambda: RuntimeError("CUDA failure 900: not permitted"))
    captured: list[int] = field(default_factory=list)
    closed: bool = False

    def capture(self, rows: int) -> None:
        if rows >= self.full_from:
            raise OutOfMemory("no room")
        if rows == self.fails_at:
            raise self.error
        self.captured.append(rows)

    def close(self) -> None:
        self.closed = True


class Opener:
    def __init__(self, **session: object) -> None:
        self.session = session
        self.made: list[Fake] = []

    def __call__(self, graphs: bool) -> Fake:
        self.made.append(Fake(graphs, **self.session))  # type: ignore[arg-type]
        return self.made[-1]


def test_every_bucket_is_captured_the_largest_first() -> None:
    opener = Opener()
    session, notes = with_graphs(opener, "", (1, 2, 4))
    assert opener.made == [session]
    assert session.captured == [4, 2, 1]
    assert notes == ["CUDA graphs for batches of 1, 2, 4 rows"]


def test_bucket_that_has_no_room_goes_without_and_smaller_ones_are_captured_in_a_fresh_session() -> None:
    opener = Opener(full_from=8)
    session, notes = with_graphs(opener, "", (1, 4, 8, 16))
    assert [made.closed for made in opener.made] == [True, True, False]
    assert (session.graphs, session.captured) == (True, [4, 1])
    assert notes == [
        "CUDA graphs for batches of 1, 4 rows",
        "no CUDA graph for batches of 8, 16 rows: the device does not have enough memory to record it",
    ]


def test_without_room_for_any_the_model_runs_plainly() -> None:
    session, notes = with_graphs(Opener(full_from=1), "", (1, 2))
    assert not session.graphs
    assert notes == ["CUDA graphs are not used: the device does not have enough memory to record one"]


REFUSED = "CUDA graphs are not used: the runtime cannot record this model; the server's log says why"


def test_one_bucket_that_cannot_be_captured_means_plain_runs_for_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    opener = Opener(fails_at=2)
    session, notes = with_graphs(opener, "", (1, 2, 4))
    assert [(made.graphs, made.closed) for made in opener.made] == [(True, True), (False, False)]
    assert not session.captured
    assert notes == [REFUSED]
    assert "CUDA graphs are not used: CUDA failure 900: not permitted" in caplog.text


def test_what_onnxruntime_refuses_when_it_opens_the_file_means_plain_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # inference_session.cc: the text for a model with an If, Loop or Scan
    text = (
        "This session cannot use the graph capture feature as requested by the user as the model has control flow "
        "nodes which can't be supported by CUDAExecutionProvider"
    )
    made: list[Fake] = []

    def open_session(graphs: bool) -> Fake:
        if graphs:
            cause = RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {text}")
            raise LoadError(f"/m/1/model.onnx cannot be loaded: {cause}") from cause
        made.append(Fake(graphs))
        return made[-1]

    session, notes = with_graphs(open_session, "", (1,))
    assert made == [session]
    assert notes == [REFUSED]
    assert f"CUDA graphs are not used: {text}" in caplog.text


def test_what_the_session_itself_knows_against_graphs_means_plain_runs() -> None:
    opener = Opener(no_graphs="the CPU reads or writes n")
    session, notes = with_graphs(opener, "", (1,))
    assert [made.closed for made in opener.made] == [True, False]
    assert not session.graphs
    assert notes == ["CUDA graphs are not used: the CPU reads or writes n"]


def test_file_that_cannot_be_opened_at_all_is_the_error_it_is() -> None:
    def open_session(graphs: bool) -> Fake:
        raise LoadError("not a model")

    with pytest.raises(LoadError, match="not a model"):
        with_graphs(open_session, "", (1,))


def test_lost_device_is_not_taken_for_a_model_that_cannot_be_captured() -> None:
    with pytest.raises(DeviceLost):
        with_graphs(Opener(fails_at=2, error=DeviceLost("gone")), "", (1, 2))


class Memory:
    """What onnxruntime holds on the device."""


class Holding(Fake):
    """Fails in a frame that holds its memory, as onnxruntime's own frames do, with an error that is its own cause."""

    def __init__(self, graphs: bool, kind: type[Exception]) -> None:
        super().__init__(graphs)
        self.kind = kind
        self.memory: Memory | None = Memory()

    def capture(self, rows: int) -> None:
        held = self.memory
        assert held is not None
        error = self.kind("it failed")
        raise error from error

    def close(self) -> None:
        self.memory = None


@pytest.mark.parametrize("kind", [RuntimeError, OutOfMemory])
def test_memory_of_a_session_that_failed_is_free_before_the_next_is_opened(kind: type[Exception]) -> None:
    seen: list[weakref.ref[Memory]] = []

    def open_session(graphs: bool) -> Holding:
        assert not [memory for memory in seen if memory()]
        session = Holding(graphs, kind)
        assert session.memory
        seen.append(weakref.ref(session.memory))
        return session

    with_graphs(open_session, "", (1, 2))
    assert len(seen) > 1


def test_memory_of_a_file_that_failed_to_open_is_free_before_it_is_opened_without_graphs() -> None:
    seen: list[weakref.ref[Memory]] = []

    def open_session(graphs: bool) -> Fake:
        assert not [memory for memory in seen if memory()]
        if graphs:
            memory = Memory()
            seen.append(weakref.ref(memory))
            error = LoadError("it has control flow")
            raise error
        return Fake(graphs)

    with_graphs(open_session, "", (1, 2))
    assert seen


def test_reason_known_beforehand_opens_the_session_once() -> None:
    opener = Opener()
    session, notes = with_graphs(opener, "so", (1, 2))
    assert opener.made == [session]
    assert not session.graphs
    assert notes == ["CUDA graphs are not used: so"]


def test_long_reason_is_cut_and_on_one_line() -> None:
    _, (note,) = with_graphs(Opener(), "line\n" * 200, (1,))
    assert len(note) < 350
    assert "\n" not in note


@pytest.mark.parametrize(
    ("options", "signature", "buckets", "asked", "reason"),
    [
        (SessionOptions(), FIXED, (1, 2), True, ""),
        (SessionOptions(cuda_graphs=False), FIXED, (1, 2), True, "`session: cuda_graphs` is false"),
        (SessionOptions(), FIXED, (1, 2), False, "`session: providers` in config.yaml decides"),
        (SessionOptions(), FIXED, (), True, "there are no batch buckets"),
        (
            SessionOptions(),
            Signature((TensorSpec("t", "INT64", (-1, -1)),), (Y,)),
            (1,),
            True,
            "input 't' has dims of any size beside the rows: [-1, -1]",
        ),
        (
            SessionOptions(),
            Signature((X,), (TensorSpec("t", "FP32", (-1, -1, 2)),)),
            (1,),
            True,
            "output 't' has dims of any size beside the rows: [-1, -1, 2]",
        ),
    ],
)
def test_reasons_before_opening(
    options: SessionOptions, signature: Signature, buckets: tuple[int, ...], asked: bool, reason: str
) -> None:
    found = reason_against(options, signature, buckets, asked)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
