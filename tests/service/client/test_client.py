"""The Python client against a server on the loopback: arrays in, arrays out, and what is refused."""

import asyncio
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import foldserve
from foldserve import AsyncClient, BadInput, Client, ClientError, ServerRefused, ServerUnreachable
from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.client.errors import UntrustedServer
from tests.service.client.scripted import answers, scripted
from tests.service.support import NumpyModels, app_of, models, running, served

ROWS = np.array([[1, 2, 3], [4, 5, 6]], "f4")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(app_of()) as port:
        yield f"http://127.0.0.1:{port}"


def test_array_is_answered_with_the_array_of_the_one_output(url):
    with Client(url) as client:
        answer = client["double"](ROWS)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, 3 * ROWS)
        answer += 1  # it is one's own
        np.testing.assert_array_equal(client.predict("double", ROWS, version="1"), 2 * ROWS)
        np.testing.assert_array_equal(client["double"](ROWS.tolist()), 3 * ROWS)
        np.testing.assert_array_equal(client["double"](x=ROWS.tolist()), 3 * ROWS)


def test_several_inputs_go_by_name_and_several_outputs_come_so(url):
    inputs = {"a": np.float32([[1, 2]]), "b": [10]}
    with Client(url) as client:
        answer = client["pair"](**inputs)
        np.testing.assert_array_equal(answer["sum"], [[11, 12]])
        np.testing.assert_array_equal(answer["count"], [11])
        only = client.predict("pair", inputs, outputs="count")
        np.testing.assert_array_equal(only, [11])
        both = client.predict("pair", inputs, outputs=["count", "sum"])
        assert list(both) == ["count", "sum"]
        with pytest.raises(ServerRefused, match="output 'z' is asked for; the model has sum, count"):
            client.predict("pair", inputs, outputs=["z"])
        with pytest.raises(BadInput, match="model 'pair' has the inputs a, b; give each by its name"):
            client["pair"](ROWS)
        with pytest.raises(ServerRefused, match="bad_tensor"):
            client["pair"](a=np.float32([[1, 2]]))


def test_inputs_are_one_array_or_all_by_name(url):
    with Client(url) as client:
        for wrong in (lambda: client["pair"](), lambda: client["pair"](ROWS, b=ROWS)):
            with pytest.raises(TypeError, match="expected one array, or every input by its name"):
                wrong()


def identities(counts_rows: bool) -> NumpyModels:
    """A model for each datatype that answers what it is sent."""
    functions, listed = {}, {}
    for datatype in DATATYPES:

        def specs(x: str, scale: str, datatype: str = datatype) -> tuple[TensorSpec, TensorSpec]:
            shape, one = ((-1, 2), (-1,)) if counts_rows else ((-1,), ())
            return (
                TensorSpec(x, datatype, shape, counts_rows=counts_rows),
                TensorSpec(scale, "FP32", one, counts_rows=counts_rows),
            )

        name = datatype.lower()
        listed[name] = served(name, ("1", Signature(specs("x", "scale"), specs("y", "s"))))
        functions[name, "1"] = lambda inputs: {"y": inputs["x"], "s": inputs["scale"]}
    return NumpyModels(functions, listed)


@pytest.mark.parametrize("counts_rows", [True, False], ids=["rows", "together"])
def test_every_datatype_comes_back_to_the_last_bit(counts_rows):
    random = np.random.default_rng(0)
    app = app_of(identities(counts_rows), default_model="fp32")
    with running(app) as port, Client(f"http://127.0.0.1:{port}") as client:
        for datatype in DATATYPES:
            dtype = numpy_dtype(datatype)
            x = np.frombuffer(random.bytes(6 * dtype.itemsize), dtype)
            x = (x.view(np.uint8) % 2).view(np.bool_) if datatype == "BOOL" else x
            x = x.reshape(3, 2) if counts_rows else x
            scale = np.arange(3, dtype="f4") if counts_rows else np.float32(0.5)
            answer = client[datatype.lower()](x=x, scale=scale)
            assert answer["y"].dtype == dtype
            assert answer["y"].tobytes() == x.tobytes()
            np.testing.assert_array_equal(answer["s"], scale)
            assert answer["s"].shape == np.shape(scale)


def test_coroutines_share_a_client_and_it_outlives_their_event_loop(url):
    client = AsyncClient(url)

    async def main():
        answers = await asyncio.gather(*(client["double"](ROWS * number) for number in range(100)))
        assert await client.ready()
        assert await client["double"].ready()
        assert (await client["double"].metadata())["versions"] == ["1", "2"]
        return answers

    for _ in range(2):
        for number, answer in enumerate(asyncio.run(main())):
            np.testing.assert_array_equal(answer, 3 * number * ROWS)


def test_refusal_has_status_code_and_the_servers_words(url):
    with Client(url) as client:
        with pytest.raises(ServerRefused, match="expected one of") as caught:
            client["nobody"](ROWS)
        assert (caught.value.status, caught.value.code) == (404, "unknown_model")
        assert caught.value.request_id
        assert caught.value.retry_after_s is None
        with pytest.raises(ServerRefused, match="bad_tensor"):
            client["double"](ROWS[:, :2])
        with pytest.raises(ServerRefused, match="expected 'FP32': convert the tensor before sending"):
            client["double"](ROWS.astype("f8"))
        for ask in (client.metadata, client.ready):
            with pytest.raises(ServerRefused, match="model 'nobody' is not served; expected one of: double"):
                ask("nobody")
        assert client.prediction("double", ROWS, request_id="mine").request_id == "mine"


def test_body_that_is_too_large_is_refused_and_not_sent_again():
    metrics_of = app_of(max_body_bytes=10_000)
    with running(metrics_of) as port, Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ServerRefused, match="413 too_large"):
            client["double"](np.zeros((200_000, 3), "f4"))
        np.testing.assert_array_equal(client["double"](ROWS), 3 * ROWS)


def test_queue_that_is_full_is_asked_again_when_the_server_says():
    behind = models()
    behind.held, behind.queue = True, {"max_rows": 2}
    with running(app_of(behind)) as port, Client(f"http://127.0.0.1:{port}", timeout_s=30.0) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client["double"](ROWS)))
        first.start()
        assert behind.arrived.wait(10)
        with pytest.raises(ServerRefused, match="429 queue_full") as caught:
            client["double"](ROWS, timeout_s=0.5)  # no time for another try
        assert caught.value.retry_after_s >= 1.0
        release = threading.Timer(0.2, lambda: setattr(behind, "held", False))
        release.start()
        np.testing.assert_array_equal(client["double"](ROWS), 3 * ROWS)
        first.join(timeout=20)
        release.join()
    np.testing.assert_array_equal(answers[0], 3 * ROWS)


def test_model_whose_input_was_renamed_meanwhile_is_asked_by_its_new_name():
    behind = models()
    renamed = Signature((TensorSpec("given", "FP64", (-1, 3)),), (TensorSpec("y", "FP64", (-1, 3)),))
    other = NumpyModels(
        {("double", "1"): lambda inputs: {"y": inputs["given"] * 5}},
        {"double": served("double", ("1", renamed))},
    )
    with running(app_of(behind)) as first, running(app_of(other)) as second:
        client = Client(f"http://127.0.0.1:{first}")
        np.testing.assert_array_equal(client["double"](ROWS.tolist()), 3 * ROWS)
        client._connections = Client(
            f"http://127.0.0.1:{second}"
        )._connections  # as after a restart on one port
        np.testing.assert_array_equal(client["double"](ROWS.tolist()), 5 * ROWS)
        with pytest.raises(ServerRefused, match="expected 'FP64'"):
            client["double"](ROWS)
        client.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x",
        "http://",
        "unix:",
        "http://x:port",
        "http://[::1",
        "http://u:p@x",
        "http://x/?a=1",
        "http://x:99999",
    ],
)
def test_address_that_is_none_is_refused(url):
    for made in (Client, AsyncClient):
        with pytest.raises(ClientError, match="expected one as in http://localhost:8000") as caught:
            made(url)
        assert "u:p" not in str(caught.value)


def test_package_names_what_it_has():
    for name in foldserve.__all__:
        assert getattr(foldserve, name).__name__ == name
    assert not hasattr(foldserve, "nothing")


def test_process_that_was_forked_asks_over_connections_of_its_own(url):
    with Client(url) as client:
        client["double"](ROWS)
        _, used = client._connections._pool
        pid = os.fork()
        if not pid:
            code = 1
            try:
                answer = client["double"](ROWS)
                code = int(not np.array_equal(answer, 3 * ROWS)) + 2 * int(
                    client._connections._pool[1] is used
                )
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        np.testing.assert_array_equal(client["double"](ROWS), 3 * ROWS)
        assert client._connections._pool[1] is used


def test_server_is_reached_by_a_name_an_address_of_version_6_and_a_socket_in_the_file_system(tmp_path):
    for family, address, shown in (
        (socket.AF_INET, ("127.0.0.1", 0), "localhost:{}"),
        (socket.AF_INET6, ("::1", 0), "http://[::1]:{}/"),
        (socket.AF_UNIX, str(tmp_path / "s.sock"), f"unix:{tmp_path}/s.sock"),
    ):
        with scripted(answers(), bound=(family, address)) as server:
            with Client(shown.format(server.port)) as client:
                assert client.info() == {"models": []}

            async def main(there):
                async with AsyncClient(there) as client:
                    return await client.info()

            assert asyncio.run(main(shown.format(server.port))) == {"models": []}
    with pytest.raises(
        ServerUnreachable, match=f"unix:{tmp_path}/nobody/info cannot be reached: .*No such file"
    ):
        Client(f"unix:{tmp_path}/nobody").info()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """server.pem and client.pem, each signed by itself, certificate and key in one file."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        made = ("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        named = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.crt")
        done = subprocess.run(
            [*made, *named, *files], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        both = (folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text()
        (folder / f"{name}.pem").write_text(both)
    return folder


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_server_with_tls_is_trusted_by_its_certificate_and_shown_the_clients(certificates):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "server.pem")
    tls.load_verify_locations(certificates / "client.crt")
    tls.verify_mode = ssl.CERT_REQUIRED
    ca, own = certificates / "server.crt", certificates / "client.pem"

    async def coroutine(url, **options):
        async with AsyncClient(url, **options) as client:
            return await client.info()

    def sync(url, **options):
        with Client(url, **options) as client:
            return client.info()

    with scripted(answers(), tls=tls) as server:
        for ask in (sync, lambda url, **options: asyncio.run(coroutine(url, **options))):
            expected: object = {"models": []}
            assert ask(server.url, ca=ca, certificate=own) == expected
            two = (certificates / "client.crt", certificates / "client.key")
            assert ask(server.url, verify=False, certificate=two) == expected
            with pytest.raises(UntrustedServer, match=r"is not trusted: .*give ca='file.pem'"):
                ask(server.url, certificate=own)
            with pytest.raises(ServerUnreachable):
                ask(server.url, ca=ca, retries=0)
            with pytest.raises(ServerUnreachable):
                ask(server.url.replace("https", "http"), retries=0)


def test_files_that_are_no_certificates_are_told(certificates, tmp_path):
    (tmp_path / "text").write_text("hello")
    for wrong in ({"ca": tmp_path / "text"}, {"certificate": tmp_path / "text"}, {"ca": "/nowhere"}):
        with pytest.raises(ClientError, match=r"cannot be read .*; expected a PEM file"):
            Client("https://localhost", **wrong)
    encrypted = (
        "openssl",
        "ec",
        "-in",
        "client.key",
        "-aes128",
        "-passout",
        "pass:word",
        "-out",
        "locked.key",
    )
    subprocess.run(encrypted, cwd=certificates, capture_output=True, check=True)
    with pytest.raises(ClientError, match="expected one without a password"):
        Client("https://localhost", certificate=(certificates / "client.crt", certificates / "locked.key"))


@pytest.mark.parametrize("timeout_s", [999.9999, 1000.0, 1234.5, 1e6])
def test_call_may_take_as_long_as_one_likes(url, timeout_s):
    with Client(url, timeout_s=timeout_s) as client:
        np.testing.assert_array_equal(client["double"](ROWS), 3 * ROWS)


def test_rows_are_answered_with_labels(url):
    with Client(url) as client:
        found = client["double"].classify(ROWS, top=2)
        assert [[one.label for one in row] for row in found] == [["2", "1"]] * 2
        assert found[1][0].score == 18.0
        assert client.classify("double", ROWS[:1].tolist(), 1, version="1")[0][0].score == 6.0
