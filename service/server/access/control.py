"""Who may ask, in the processes of a server: made in the parent, taken up by API servers, changed with the files."""

import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from foldserve.service.access.cross_origin import CrossOrigin
from foldserve.service.access.gate import Gate
from foldserve.service.access.key_file import KeySource
from foldserve.service.access.key_table import KeyTable
from foldserve.service.access.keyring import Caller, Keyring
from foldserve.service.access.quotas import Quotas
from foldserve.service.errors import ConfigError
from foldserve.service.frontend.connections.tls import Tls
from foldserve.service.ipc.control import ControlMessage
from foldserve.service.ipc.scoreboard import Dimensions
from foldserve.service.server.access.reloading import WatchedFiles
from foldserve.service.settings import ServeSettings

_log = logging.getLogger("foldserve.access")


class Access:
    """Made in the parent, before any other process.

    tls: None where nothing is encrypted. Raises: ConfigError when keys or certificates cannot be used.
    """

    def __init__(self, settings: ServeSettings, dimensions: Dimensions) -> None:
        self.tls = Tls.of(settings)
        origins = settings.cors_origins
        self.cross_origin = None if origins is None else CrossOrigin(origins.split(","))
        self.source = None if settings.keys is None else KeySource(settings.keys)
        if self.source is not None:
            keys = self.source.read()
            self.table, self.quotas = KeyTable(), Quotas(dimensions.api_servers, dimensions.models)
            self._mapped_quotas = self.quotas.map()
            self.table.write(keys, self._mapped_quotas)

    def api_server_died(self, index: int) -> None:
        """What it had waiting is counted no more."""
        if self.source is not None:
            self._mapped_quotas.api_server_died(index)

    def watched(self, tell: Callable[[ControlMessage], None]) -> WatchedFiles | None:
        """What takes up changes of files; None where there are none. tell: tells every API server."""
        actions: dict[tuple[Path, ...], Callable[[], None]] = {}
        if self.source is not None and self.source.path is not None:
            actions[(self.source.path,)] = lambda: self._take_keys(tell)
        if self.tls is not None:
            actions[self.tls.files.paths()] = lambda: self._take_certificate(tell)
        return WatchedFiles.of(actions)

    def _take_keys(self, tell: Callable[[ControlMessage], None]) -> None:
        assert self.source is not None
        try:
            keys = self.source.read()
        except ConfigError as error:
            for problem in error.problems[:10]:
                _log.error("%s; the keys that were read before stay in force", problem)
            return
        self.table.write(keys, self._mapped_quotas)
        tell(ControlMessage.KEYS_CHANGED)
        _log.info("the keys have changed: %d are in force", len(keys))

    def _take_certificate(self, tell: Callable[[ControlMessage], None]) -> None:
        assert self.tls is not None
        try:
            self.tls.reload()
        except ConfigError as error:
            _log.error("%s; the certificate that was read before stays in force", error)
            return
        tell(ControlMessage.CERTIFICATE_CHANGED)
        _log.info("the certificate has changed: new connections are given the new one")


class ApiAccess:
    """One API server's part."""

    def __init__(self, access: Access, index: int) -> None:
        self._access = access
        self._index = index
        self.tls = access.tls
        self._keyring = None if access.source is None else Keyring()
        self._quotas = None if access.source is None else access.quotas.map()
        self.gate = Gate(self._keyring, access.cross_origin)
        self.take_keys()

    def take_keys(self) -> bool:
        """Have the keys that are in force now; False while they are being written."""
        quotas = self._quotas
        if self._keyring is None or quotas is None:
            return False
        found = self._access.table.read()
        if found is None:
            return False
        self._keyring.hold(Caller(key, quotas.of(key, slot, self._index)) for key, slot in found)
        return True

    def take_certificate(self) -> None:
        """Have the certificate that the files hold now."""
        assert self.tls is not None
        try:
            self.tls.reload()
        except ConfigError as error:  # they are being changed again: another message comes
            _log.warning("%s; this API server goes on with the one before", error)


def warn_of_open_door(settings: ServeSettings, listeners: Sequence[socket.socket]) -> None:
    """Warn where everybody on the network may send requests."""
    if settings.keys is not None:
        return
    named = [one.getsockname()[0] for one in listeners if one.family != socket.AF_UNIX]
    reached = [one for one in named if not ipaddress.ip_address(one.partition("%")[0]).is_loopback]
    if reached:
        _log.warning(
            "whoever reaches %s may send requests: no key is asked for. Make one with `openssl rand -hex 32`, write "
            '`- {name: me, key: "..."}` into a file, and start with --keys FILE (FOLDSERVE_KEYS); docs/security.md',
            ", ".join(reached),
        )
