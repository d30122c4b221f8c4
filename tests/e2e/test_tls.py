"""TLS on a real server with two API servers, for HTTP and gRPC: clients of others, reloads under load, attackers."""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from foldserve.service.cli import main
from tests.e2e.certificates import Authority, Certificate
from tests.e2e.grpc_calls import given
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import save_linear

pytestmark = pytest.mark.e2e

ROW = np.ones((1, 10), np.float32)
BODY = json.dumps({"inputs": ROW.tolist()})
JSON = {"content-type": "application/json"}
WEIGHT = np.ones((10, 5), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    return Authority(folder / "stranger", "stranger")


@pytest.fixture(scope="module")
def repository(folder: Path) -> Path:
    save_linear(folder / "repository" / "mlp" / "1" / "model.onnx", WEIGHT)
    return folder / "repository"


class Installed(Certificate):
    """The files that a server was given, to be replaced."""

    def install(self, other: Certificate) -> None:
        for source, target in ((other.certificate, self.certificate), (other.key, self.key)):
            beside = target.with_suffix(".new")
            shutil.copy(source, beside)
            os.replace(beside, target)


@contextlib.contextmanager
def encrypted(folder: Path, repository: Path, files: Certificate, *options: str) -> Iterator[ServerProcess]:
    output = folder / "output"
    tls = ("--tls-certificate", str(files.certificate), "--tls-key", str(files.key))
    with serving(repository, output, "--api-servers", "2", *tls, *options, grpc=True) as running:
        yield running


@pytest.fixture(scope="module")
def files(folder: Path, authority: Authority) -> Installed:
    (folder / "installed").mkdir()
    made = Installed(folder / "installed" / "server.pem", folder / "installed" / "server.key")
    made.install(authority.sign("first"))
    return made


@pytest.fixture(scope="module")
def server(folder: Path, repository: Path, files: Installed) -> Iterator[ServerProcess]:
    with encrypted(folder, repository, files) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running
        assert "Traceback" not in running.output


def post(
    server: ServerProcess, trusted: Path, cert: tuple[str, str] | None = None, session: Any = requests
) -> requests.Response:
    # Given with each request: the environment may name other authorities.
    verify = str(trusted)
    url = f"{server.url}/predict/mlp"
    answer: requests.Response = session.post(
        url, data=BODY, headers=JSON, verify=verify, cert=cert, timeout=START_LIMIT_S
    )
    return answer


def test_clients_of_others_are_served(server: ServerProcess, authority: Authority) -> None:
    assert post(server, authority.certificate).json()["outputs"]["y"] == [[10.0] * 5]
    command = [
        "curl",
        "-sS",
        "--cacert",
        authority.certificate,
        "-H",
        "content-type: application/json",
        "-d",
        BODY,
    ]
    done = subprocess.run([*command, f"{server.url}/predict/mlp"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["outputs"]["y"] == [[10.0] * 5]
    assert f"serves {server.url}" in server.output


def test_files_are_sent_from_a_shell(
    server: ServerProcess, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 10), "float32"))
    command = ["predict", server.url, "mlp", str(tmp_path / "x.npy")]
    assert main([*command, "--ca", str(authority.certificate)]) == 0
    assert "y float32 [1, 5]" in capsys.readouterr().out
    assert main(command) == 1
    assert "foldserve predict --ca" in capsys.readouterr().err


def test_clients_of_triton_are_served(server: ServerProcess, authority: Authority) -> None:
    over_http = triton_http.InferInput("x", [1, 10], "FP32")
    over_http.set_data_from_numpy(ROW)
    context = {"ssl": True, "ssl_options": {"ca_certs": str(authority.certificate)}, "insecure": False}
    with triton_http.InferenceServerClient(server.url.removeprefix("https://"), **context) as client:
        assert client.infer("mlp", [over_http]).as_numpy("y").tolist() == [[10.0] * 5]
    with triton_grpc.InferenceServerClient(
        server.grpc, ssl=True, root_certificates=str(authority.certificate)
    ) as client:
        assert client.infer("mlp", [given(ROW)]).as_numpy("y").tolist() == [[10.0] * 5]


def test_large_bodies_and_answers_go_through(server: ServerProcess, authority: Authority) -> None:
    rows = np.random.default_rng(0).random((100_000, 10), np.float32)  # 4 MB in, 2 MB out
    headers = {"content-type": "application/octet-stream"}
    trusted = str(authority.certificate)
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(
                f"{server.url}/predict/mlp", data=rows.tobytes(), headers=headers, timeout=60, verify=trusted
            )
            found = np.frombuffer(answer.content, "<f4").reshape(-1, 5)
            np.testing.assert_allclose(found, rows @ WEIGHT, rtol=1e-5)


def test_slow_reader_of_a_large_answer_gets_all_of_it(server: ServerProcess, authority: Authority) -> None:
    rows = np.ones((200_000, 10), np.float32)
    context = ssl.create_default_context(cafile=str(authority.certificate))
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    with context.wrap_socket(raw, server_hostname="localhost") as client:
        lines = (
            "POST /predict/mlp HTTP/1.1",
            "Host: x",
            "Connection: close",
            f"Content-Length: {rows.nbytes}",
        )
        head = "\r\n".join((*lines, "Content-Type: application/octet-stream", "", ""))
        client.sendall(head.encode() + rows.tobytes())
        received = bytearray()
        while part := client.recv(65_536):
            received += part
            if len(received) % 7 == 0:
                time.sleep(0.001)  # slower than it could be
    assert bytes(received).startswith(b"HTTP/1.1 200")
    assert received.count(np.full(5, 10, "<f4").tobytes()) == len(rows)


def test_client_that_trusts_another_authority_does_not_connect(
    server: ServerProcess, stranger: Authority
) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        post(server, stranger.certificate)
    credentials = grpc.ssl_channel_credentials(stranger.certificate.read_bytes())
    with grpc.secure_channel(server.grpc, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_versions_before_1_2_are_refused_and_1_2_is_taken(
    server: ServerProcess, authority: Authority
) -> None:
    def version(most: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority.certificate)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = most
        raw = socket.create_connection(("127.0.0.1", server.port))
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            return client.version()

    assert version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert version(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with (
        pytest.warns(DeprecationWarning, match="TLS"),
        pytest.raises(OSError, match=r"(?i)alert|eof|reset|protocol"),
    ):
        version(ssl.TLSVersion.TLSv1_1)


def test_certificate_changes_under_load_and_no_request_fails(
    server: ServerProcess, files: Installed, authority: Authority
) -> None:
    def names() -> set[str]:
        found = set()
        for address in (("127.0.0.1", server.port), ("127.0.0.1", int(server.grpc.rpartition(":")[2]))):
            for _ in range(8):  # both API servers
                context = ssl.create_default_context(cafile=str(authority.certificate))
                context.set_alpn_protocols(["h2", "http/1.1"])
                raw = socket.create_connection(address)
                with context.wrap_socket(raw, server_hostname="localhost") as client:
                    subject: Any = client.getpeercert()
                    found.add(subject["subject"][0][0][1])
        return found

    answers: list[int] = []
    stop = threading.Event()

    def ask(keeps: bool) -> None:
        kept = requests.Session()
        while not stop.is_set():
            session = kept if keeps else requests.Session()
            answers.append(post(server, authority.certificate, session=session).status_code)
            if not keeps:
                session.close()
        kept.close()

    threads = [threading.Thread(target=ask, args=(keeps,)) for keeps in (True, False)]
    for thread in threads:
        thread.start()
    assert names() == {"first"}
    for name in ("second", "third"):
        files.install(authority.sign(name))
        server.until(lambda name=name: names() == {name})  # type: ignore[misc]
    before = len(answers)
    files.certificate.write_text("no certificate")
    server.until(lambda: "the certificate that was read before stays in force" in server.output)
    server.until(lambda: len(answers) > before + 20)
    assert names() == {"third"}
    stop.set()
    for thread in threads:
        thread.join(60)
    assert set(answers) == {200}
    files.install(authority.sign("first"))
    server.until(lambda: names() == {"first"})


def test_expired_certificate_is_the_clients_to_refuse(
    server: ServerProcess, files: Installed, authority: Authority
) -> None:
    files.install(authority.sign("expired", days=-1))

    def expired() -> bool:
        try:
            post(server, authority.certificate)
        except requests.exceptions.SSLError as error:
            return "expired" in str(error)
        return False

    server.until(expired)
    files.install(authority.sign("first"))
    server.until(lambda: not expired() and post(server, authority.certificate).status_code == 200)


HTTP = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def handshake_failures(server: ServerProcess) -> float:
    return server.metric("foldserve_connections_refused_total", reason="handshake")


@pytest.mark.parametrize(
    "sent", [HTTP, b"\0" * 5000, os.urandom(5000), b"\x16\x03\x01\x02\x00" + b"\xff" * 512, b"\x16"]
)
def test_what_is_no_handshake_ends_its_connection_and_nobody_elses(
    server: ServerProcess, authority: Authority, sent: bytes
) -> None:
    before = handshake_failures(server)
    client = socket.create_connection(("127.0.0.1", server.port), timeout=START_LIMIT_S)
    with client, contextlib.suppress(OSError):
        client.sendall(sent)
        if sent == b"\x16":
            client.shutdown(socket.SHUT_WR)
        while client.recv(1000):
            pass
    server.until(lambda: handshake_failures(server) > before)
    assert post(server, authority.certificate).status_code == 200


def test_silent_handshakes_keep_nobody_out_and_are_ended(server: ServerProcess, authority: Authority) -> None:
    before = handshake_failures(server)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(600)]
    try:
        began_s = time.monotonic()
        for _ in range(10):
            assert post(server, authority.certificate).status_code == 200
        assert time.monotonic() - began_s < 10  # as long as a silent one is waited for
        server.until(
            lambda: handshake_failures(server) - before >= len(silent)
        )  # all are ended, by time or number
    finally:
        for one in silent:
            one.close()
    lines = [line for line in server.output.splitlines() if "TLS handshake" in line]
    assert len(lines) < 40


def test_early_ends_and_heads_without_end_are_borne(server: ServerProcess, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    for sent in (
        b"",
        b"POST /predict/mlp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        HTTP,
        b"x" * 200_000,
    ):
        for closes in (True, False):
            raw = socket.create_connection(("127.0.0.1", server.port))
            client = context.wrap_socket(raw, server_hostname="localhost")
            with contextlib.suppress(OSError):
                client.sendall(sent)
                if closes:
                    client.unwrap()
            client.close()
    assert post(server, authority.certificate).status_code == 200
    assert "returning true from eof_received" not in server.output


def test_renegotiation_is_refused(server: ServerProcess, authority: Authority) -> None:
    command = [
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{server.port}",
        "-tls1_2",
        "-CAfile",
        authority.certificate,
    ]
    done = subprocess.run(command, input="R\n", capture_output=True, text=True, timeout=60, check=False)
    assert "no renegotiation" in done.stderr.lower()
    assert post(server, authority.certificate).status_code == 200


def test_certificate_of_a_client_is_asked_for_but_on_unix_sockets_and_others_are_refused(
    tmp_path: Path, repository: Path, files: Installed, authority: Authority, stranger: Authority
) -> None:
    clients = Authority(tmp_path / "clients", "clients")
    good, bad = clients.sign("a-client"), stranger.sign("a-stranger")
    path = tmp_path / "s"
    options = ("--tls-client-ca", str(clients.certificate), "--host", f"unix:{path},127.0.0.1")
    with encrypted(tmp_path, repository, files, *options) as server:
        pair = (str(good.certificate), str(good.key))

        def ready() -> bool:
            with contextlib.suppress(requests.ConnectionError):
                return post(server, authority.certificate, pair).status_code == 200
            return False

        server.until(ready)
        for cert in (None, (str(bad.certificate), str(bad.key))):
            with pytest.raises(requests.ConnectionError):
                post(server, authority.certificate, cert)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as plain:
            assert plain.post("http://x/predict/mlp", content=BODY, headers=JSON).status_code == 200
        root = authority.certificate.read_bytes()
        for chain, served in ((good, True), (bad, False), (None, False)):
            own = (None, None) if chain is None else (chain.key.read_bytes(), chain.certificate.read_bytes())
            with grpc.secure_channel(server.grpc, grpc.ssl_channel_credentials(root, *own)) as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                if served:
                    assert check(b"", timeout=60) == b"\x08\x01"
                else:
                    with pytest.raises(grpc.RpcError):
                        check(b"", timeout=5)


def test_files_that_cannot_be_used_are_told_at_the_start(
    tmp_path: Path, repository: Path, authority: Authority
) -> None:
    """Each kind: tests/service/frontend/connections/test_tls.py."""
    mine, other = authority.sign("mine"), authority.sign("other")
    options = ("--tls-certificate", str(mine.certificate), "--tls-key", str(other.key))
    with serving(repository, tmp_path / "output", *options) as server:
        assert server.process.wait(START_LIMIT_S) == 2
        assert "KEY_VALUES_MISMATCH" in server.output
        assert "Traceback" not in server.output
