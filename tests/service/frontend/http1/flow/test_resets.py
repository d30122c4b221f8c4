import asyncio
import socket
from collections.abc import Callable

import pytest

from foldserve.service.frontend.http1.flow.resets import was_reset


@pytest.mark.parametrize(
    ("leave", "reset"),
    [
        (lambda client: client.close(), True),
        (lambda client: client.shutdown(socket.SHUT_WR), False),
        (lambda client: None, False),
    ],
    ids=["closed", "only its side ended", "still there"],
)
def test_a_client_that_has_left_is_told_from_one_that_only_sends_no_more(
    leave: Callable[[socket.socket], None], reset: bool
) -> None:
    async def main() -> None:
        made, ended = asyncio.Event(), asyncio.Event()

        class Server(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                made.set()

            def eof_received(self) -> bool:
                ended.set()
                return True

        loop = asyncio.get_running_loop()
        protocol = Server()
        listener = await loop.create_server(lambda: protocol, "127.0.0.1", 0)
        client = socket.create_connection(listener.sockets[0].getsockname()[:2])
        async with listener:
            leave(client)
            async with asyncio.timeout(10):
                await made.wait()
                if reset:
                    await ended.wait()
                assert not was_reset(protocol.transport)  # type: ignore[arg-type]
                protocol.transport.write(b"H")  # type: ignore[attr-defined]
                while reset and not was_reset(protocol.transport):  # type: ignore[arg-type]
                    await asyncio.sleep(0.001)  # until the other side has answered
            assert was_reset(protocol.transport) == reset  # type: ignore[arg-type]
            protocol.transport.close()
            client.close()

    asyncio.run(main())


def test_of_what_is_no_tcp_nobody_knows() -> None:
    class Transport(asyncio.Transport):
        pass

    assert not was_reset(Transport())
