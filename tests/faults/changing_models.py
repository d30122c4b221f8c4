"""A program: `foldserve serve` whose supervisor loads and unloads models at what it reads from its standard input.

load FOLDER        the model's only version            -> "loaded ROW GENERATION"
unload ROW         what the row holds                  -> "unloading ROW"
look ROW                                               -> "row STATE GENERATION"
old-ticket ROW     a ticket of the row's last version comes late
                                                       -> "sent"
"""

import os
import sys
from pathlib import Path

import numpy as np

from foldserve.service.backends.devices import choose_devices
from foldserve.service.frontend.connections.addresses import bind
from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.model_table import ModelState
from foldserve.service.ipc.records import GENERATIONS, TICKET
from foldserve.service.logs.lines import LogStyle
from foldserve.service.logs.records import configure_logging
from foldserve.service.repository.index import read_model, scan_repository
from foldserve.service.repository.model_version import versions_of
from foldserve.service.server.main import Server
from foldserve.service.setting_sources import load_settings


class Commands:
    """What the supervisor looks after as if it were a process that helps it: readable when a command came."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def fileno(self) -> int:
        return sys.stdin.fileno()

    def renew(self) -> None:
        for line in os.read(self.fileno(), 65536).decode().splitlines():
            command, _, value = line.partition(" ")
            print(getattr(self, command.replace("-", "_"))(value), flush=True)

    def load(self, folder: str) -> str:
        entry, broken = read_model(Path(folder))
        assert entry is not None, broken
        (version,) = versions_of([entry])
        key = self._server.supervisor.load_model(version)
        return f"loaded {key.row} {key.generation}"

    def unload(self, row: str) -> str:
        self._server.supervisor.unload_model(self._server.models.table.key(int(row)))
        return f"unloading {row}"

    def look(self, row: str) -> str:
        table = self._server.models.table
        return f"row {ModelState(table.state[int(row)]).name} {table.generation[int(row)]}"

    def old_ticket(self, row: str) -> str:
        ticket = np.zeros(1, TICKET)
        # For the first slot of the first API server, in its first attempt: but for the generation it might be good.
        ticket["attempt"], ticket["rows"] = 1, 1
        ticket["deadline_ns"] = 1 << 62
        ticket["generation"] = (self._server.models.table.generation[int(row)] - 1) % GENERATIONS
        os.write(self._server.transport.queues[int(row)].levels[0].writer.fd, ticket.tobytes())
        return "sent"


def main(repository: str, port: str, *options: str) -> int:
    """Serve until a signal."""
    given = {"repository": repository, "port": port, "device": "cpu", "check_moves": True}
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    settings = load_settings({**given, **pairs}, {})
    configure_logging(LogStyle("info"))
    with StopSignals() as stop:
        sockets = bind(settings.host, settings.port)
        server = Server(settings, scan_repository(settings.repository), choose_devices("cpu"), sockets, stop)
        server.supervisor.watch(Commands(server))
        return server.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
