"""The server's certificate, for grpcio."""

from typing import Any

import grpc

from foldserve.service.frontend.connections.tls import Pem, Tls


def server_credentials(tls: Tls) -> Any:
    """The server's side of TLS; a certificate that is reloaded is for connections made from then on."""
    given = tls.pem

    def changed() -> Any:
        """Called by grpcio for each connection: what to use from now on, None for what it has."""
        nonlocal given
        if tls.pem is given:
            return None
        given = tls.pem
        return _configuration(given)

    return grpc.dynamic_ssl_server_credentials(_configuration(given), changed, given.client_ca is not None)


def _configuration(pem: Pem) -> Any:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)
