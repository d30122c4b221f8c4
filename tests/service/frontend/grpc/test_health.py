"""Health as it is watched: no change is missed, whenever it comes."""

import asyncio
from typing import Any

from foldserve.service.frontend.grpc.health import HealthWatch
from foldserve.service.protocols.oip.messages import message

RESPONSE = message("grpc.health.v1.HealthCheckResponse")


class Readiness:
    def __init__(self) -> None:
        self.is_ready = True

    def ready(self) -> bool:
        return self.is_ready


def test_change_right_after_the_first_answer_is_told_too() -> None:
    status: Any = Readiness()
    told: list[str] = []

    async def watch() -> None:
        both = asyncio.Event()

        class Call:
            async def write(self, answer: bytes) -> None:
                told.append(RESPONSE.FromString(answer).status)
                status.is_ready = False  # before anybody has looked again
                if len(told) == 2:
                    both.set()

        watching = asyncio.create_task(HealthWatch(status).watch("", Call()))
        try:
            await asyncio.wait_for(both.wait(), 30)
        finally:
            watching.cancel()

    asyncio.run(watch())
    named = RESPONSE.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number
    assert [named[number].name for number in told] == ["SERVING", "NOT_SERVING"]
