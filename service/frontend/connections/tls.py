"""The certificates that the server speaks TLS with, from files; made in the parent, and again when the files change.

TLS 1.2 at least, without renegotiation and compression. A new certificate is for new connections: those that are
there go on with the old one.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foldserve.service.documents import BadDocument, read_regular
from foldserve.service.errors import ConfigError
from foldserve.service.settings import ServeSettings

_FILE_BYTES: Final = 2**20
_HTTP1: Final = "http/1.1"


@dataclass(frozen=True)
class TlsFiles:
    """client_ca: None where clients need no certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None

    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True)
class Pem:
    """The contents of the files."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """What is in force. context: of HTTP; pem: for gRPC."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises: ConfigError when the files cannot be used."""
        self.files = files
        self.reload()

    @classmethod
    def of(cls, settings: ServeSettings) -> "Tls | None":
        """As the settings have it; None where it is off. Raises: ConfigError."""
        certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        if certificate is None and key is None and client_ca is None:
            return None
        if certificate is None or key is None:
            raise ConfigError(
                "TLS needs both --tls-certificate and --tls-key; give the two files, or neither"
            )
        return cls(TlsFiles(certificate, key, client_ca))

    def reload(self) -> None:
        """Take what the files hold now. Raises: ConfigError, and what was in force stays so."""
        pem = _read(self.files)
        self.context, self.pem = _context(self.files), pem


def _read(files: TlsFiles) -> Pem:
    found = []
    for path in files.paths():
        try:
            found.append(read_regular(path, _FILE_BYTES))
        except FileNotFoundError:
            raise ConfigError(
                f"{path} of the TLS settings is not there; give the path of a PEM file"
            ) from None
        except BadDocument as error:
            raise ConfigError(f"{path} of the TLS settings {error}") from None
    certificate, key, *client_ca = found
    return Pem(certificate, key, client_ca[0] if client_ca else None)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([_HTTP1])
    try:
        context.load_cert_chain(files.certificate, files.key, _no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--tls-certificate {files.certificate} and --tls-key {files.key} cannot be used ({_why(error)}); expected "
            "PEM files of a certificate (with those that it is signed by) and of its private key, without a password"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--tls-client-ca {files.client_ca} cannot be used ({_why(error)}); expected a PEM file of certificates"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password(*_: Any) -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask the terminal


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
