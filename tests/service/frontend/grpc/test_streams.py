"""What goes on for streams when the server ends."""

import asyncio

from foldserve.service.frontend.grpc.streams import Streams


def test_what_has_come_is_read_for_a_while_after_the_end_and_everything_else_ends_at_once() -> None:
    async def main() -> None:
        streams, messages, read = Streams(), asyncio.Queue[int](), []

        async def reads() -> None:
            while True:
                read.append(await messages.get())

        reader = streams.begin(reads(), after_end_s=0.05)
        watcher = streams.begin(asyncio.Event().wait())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        streams.end()
        await asyncio.wait((watcher,))
        assert watcher.cancelled()
        messages.put_nowait(1)
        async with asyncio.timeout(20):
            await asyncio.wait((reader,))
        assert read == [1]
        assert reader.cancelled()

    asyncio.run(main())
