"""What the head of a request asks for: made once for all requests that ask alike, so that each looks up nothing."""

from collections.abc import Callable

from foldserve.service.access.keyring import Caller
from foldserve.service.access.quotas import Quota
from foldserve.service.codecs.protocol import InferenceProtocol, Options, Served, SharedRegions
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.ipc.slots.allocator import ALIGNMENT


class BodyLimit:
    """The longest body, and the setting that says so."""

    def __init__(self, nbytes: int, setting: str) -> None:
        self.nbytes = nbytes
        self.setting = setting


class RequestPlan:
    """What becomes of a body: which model gets it, what parses it, what renders the answer.

    Args:
        reads, writes: the protocols of the request's body and of its answer.
        counter: Metrics.answered_counter of `reads` and the model version.
        outputs: those to answer with; none for all.
        regions: see Served.
    """

    def __init__(
        self,
        queue: ModelQueue,
        reads: InferenceProtocol,
        writes: InferenceProtocol,
        counter: Callable[..., None],
        limit: BodyLimit,
        outputs: tuple[str, ...] = (),
        regions: SharedRegions | None = None,
    ) -> None:
        signature = queue.layout.signature
        self.queue = queue
        self.reads = reads
        self.writes = writes
        self.counter = counter
        self.limit = limit
        self.outputs = outputs
        self.served = Served(queue.model, queue.version, signature, queue.labels, queue.image, regions)
        self.media_type = writes.media_type
        fast = reads.fast_codec(self.served)
        self.parse = fast
        """The quick way to the inputs, where there is one."""
        self.render = None if outputs else fast if writes is reads else writes.fast_codec(self.served)
        """The quick way to the answer."""
        fits = reads.raw and queue.layout.one_fixed_input
        self.row_bytes = (
            queue.layout.input_row_bytes if fits and signature.inputs[0].datatype != "BOOL" else 0
        )
        """Bytes of a row in a body that needs no look at its values; 0 when there is no such thing."""
        self.counts_rows = signature.counts_rows
        self.large_bytes = reads.large_bytes
        self.at_once_bytes = writes.at_once_bytes
        self.queue_ns = int(queue.timeout_s * 1e9)
        """The longest from being queued to the answer."""
        self._answering: dict[tuple[str, tuple[str, ...]], RequestPlan] = {}

    def answering(self, writes: InferenceProtocol, outputs: tuple[str, ...]) -> "RequestPlan":
        """The same with another answer; made once."""
        key = (writes.key, outputs)
        plan = self._answering.get(key)
        if plan is None:
            plan = self._answering[key] = RequestPlan(
                self.queue, self.reads, writes, self.counter, self.limit, outputs, self.served.regions
            )
        return plan

    def envelope_bytes(self, length: int, options: Options) -> int:
        """How much of a body of this length stands before whole rows, as far as its head tells; 0 when it does not."""
        if self.parse is None or not self.queue.layout.one_fixed_input:
            return 0
        nbytes = self.parse.envelope_bytes(options)
        tensor_bytes = length - nbytes
        if nbytes <= 0 or tensor_bytes <= 0 or tensor_bytes % self.queue.layout.input_row_bytes:
            return 0
        return nbytes

    def is_rows(self, length: int) -> bool:
        """Whether a body of this length, or of an unknown one, is whole rows, to be computed with as it comes."""
        if not self.row_bytes or length <= 0:
            return False
        return length % self.row_bytes == 0 if self.counts_rows else length == self.row_bytes


class Target:
    """What a request line asks for. query: with the question mark; "" for none. pattern: the route that it is of."""

    def __init__(self, path: str, query: str, pattern: str, method: str = "POST") -> None:
        self.method = method
        self.path = path
        self.query = query
        self.pattern = pattern


class RequestHead:
    """What the head of a request says.

    length: of the body; partial_body.UNKNOWN where only its end tells. request_id, timeout_ms: as the client gave them;
    empty when it did not, or gave an id that is none. options: what the head says to the protocol of the body.
    encoding: of the body, one of compression.ENCODINGS; "" where it is as it stands. priority: what X-Priority says; 0
    for the model's default. key_name, quota: of who asks, where a key is asked for.

    Raises: BadRequest for a priority that the model does not have.
    """

    def __init__(
        self,
        target: Target,
        plan: RequestPlan,
        length: int,
        request_id: bytes,
        timeout_ms: bytes,
        options: Options = (),
        encoding: str = "",
        priority: int = 0,
    ) -> None:
        self.target = target
        self.plan = plan
        self.length = length
        self.request_id = request_id
        self.timeout_ms = timeout_ms
        self.options = options
        self.encoding = encoding
        self.key_name = ""
        self.quota: Quota | None = None
        self.level = plan.queue.level_of(priority, "X-Priority")
        self.is_rows = not options and not encoding and plan.is_rows(length)
        self.envelope_bytes = 0 if encoding else plan.envelope_bytes(length, options)
        """Of the body, before its rows; 0 where it has no such thing, or does not tell."""
        self.begin = -self.envelope_bytes % ALIGNMENT
        """Where in its memory a body begins that comes in parts: so that its rows are aligned."""

    def made_by(self, caller: Caller) -> None:
        """This caller asks."""
        self.key_name = caller.name
        self.quota = caller.quota
