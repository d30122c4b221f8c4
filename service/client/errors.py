"""Everything that a call of a client raises: ClientError, and what is one."""


class ClientError(Exception):
    """A call that gave no result.

    status: the HTTP status; None where no answer came. code: a stable word for programs, the server's own where the
    server has spoken. request_id: under which the server's log has the request; None where it is not known.
    """

    status: int | None = None
    code: str = "client_error"
    request_id: str | None = None


class BadUrl(ClientError):
    """The URL is no server's."""

    code = "bad_url"


class BadInput(ClientError, ValueError):
    """What was given cannot be sent: nothing was."""

    code = "bad_input"


class NotFoldserve(ClientError):
    """An answer that cannot be read: the URL is likely another server's."""

    code = "not_foldserve"


class ServerUnreachable(ClientError):
    """No answer came: no connection, or one that ended before the answer was whole."""

    code = "unreachable"


class UntrustedServer(ServerUnreachable):
    """The server's certificate is not one that is trusted."""

    code = "untrusted"


class DeadlinePassed(ClientError, TimeoutError):
    """The time of the call is over: the server has said so, or has said nothing."""

    status = 504
    code = "deadline_passed"


class ServerRefused(ClientError):
    """The server answered with an error.

    retry_after_s: seconds after which it is worth another try; None where it is not.
    """

    status: int

    def __init__(
        self, text: str, status: int, code: str, retry_after_s: float | None, request_id: str | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id = request_id
