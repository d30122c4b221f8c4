"""Files of certificates and keys that cannot be used, and what is said of them."""

import subprocess
from dataclasses import replace

import pytest

from foldserve.service.errors import ConfigError
from foldserve.service.frontend.connections.tls import Tls
from tests.e2e.certificates import Authority
from tests.service.support import SETTINGS


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder, "authority")
    mine, other = authority.sign("mine"), authority.sign("other")
    locked = folder / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-aes128", "-passout", "pass:x", "-in", mine.key, "-out", locked],
        check=True,
        capture_output=True,
    )
    return {"certificate": mine.certificate, "key": mine.key, "other": other.key, "locked": locked}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"tls_certificate": "certificate"}, "TLS needs both"),
        ({"tls_client_ca": "certificate"}, "TLS needs both"),
        ({"tls_certificate": "certificate", "tls_key": "certificate"}, "cannot be used"),
        ({"tls_certificate": "certificate", "tls_key": "other"}, "KEY_VALUES_MISMATCH"),
        ({"tls_certificate": "certificate", "tls_key": "locked"}, "without a password"),
        (
            {"tls_certificate": "certificate", "tls_key": "key", "tls_client_ca": "key"},
            "--tls-client-ca",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(named, files, text):
    with pytest.raises(ConfigError, match=text):
        Tls.of(replace(SETTINGS, **{setting: named[name] for setting, name in files.items()}))


def test_files_that_are_gone_are_refused_by_name(named, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        Tls.of(replace(SETTINGS, tls_certificate=tmp_path / "nowhere", tls_key=named["key"]))


def test_without_the_settings_nothing_is_encrypted():
    assert Tls.of(SETTINGS) is None
