"""What bodies may be: how long one, and how much memory those that are being received may hold together."""

from foldserve.service.errors import QueueFull, ServiceError, TooLarge
from foldserve.service.inference.holdings import Holdings


class BodyTooLarge(TooLarge):
    """TooLarge, found before the whole body was read: the connection holds the rest of it."""

    @classmethod
    def than(cls, limit_bytes: int, setting: str, shorter: str, nbytes: int | None = None) -> "BodyTooLarge":
        """For a body beyond the limit, which comes from that setting. shorter: InferenceProtocol.shorter; nbytes: its
        length, where that is known."""
        found = "the body is larger" if nbytes is None else f"the body has {nbytes} bytes"
        return cls(
            f"{found}; expected at most {limit_bytes} bytes: {shorter}, or raise {setting} on the server"
        )


class BodyBudget(Holdings):
    """Bounds what all the bodies that are being received may hold together."""

    def never(self, nbytes: int) -> TooLarge:
        """For a body of so many bytes, or more, which could not be held if nobody else were there."""
        return TooLarge(
            f"a body of {nbytes} bytes that comes in parts does not fit: all that are being received may hold "
            f"{self.limit_bytes} bytes together; send less in a single request, or raise --receive-bytes on the server"
        )

    def full(self, nbytes: int, held: int) -> ServiceError:
        """For a body that holds so many bytes and of which so many more do not fit."""
        if held + nbytes > self.limit_bytes:
            return self.never(held + nbytes)
        return QueueFull(
            f"the bodies that are being received hold {self.used_bytes} of {self.limit_bytes} bytes, and "
            f"{nbytes} more do not fit; try again later"
        )

    def evicted(self) -> QueueFull:
        """For a body that was given up so that others have room."""
        return QueueFull(
            f"the bodies that are being received take all of their {self.limit_bytes} bytes, and this one stalled or "
            "held more than its share; send it without pauses, or try again later"
        )
