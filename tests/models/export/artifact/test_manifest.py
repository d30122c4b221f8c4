"""What the export writes is what the server's schema says, to the byte."""

import json

import pytest

from foldserve.service.artifact.manifest import read_manifest


@pytest.mark.parametrize("name", ["digits", "mlp"])
def test_manifest_as_the_server_reads_it_is_the_file_to_the_byte(exported, name):
    result = exported(name)
    manifest = read_manifest(result.folder, f"{name}/1")
    assert json.dumps(manifest.to_json(), indent=2) + "\n" == result.manifest.read_text()
    assert manifest.to_json() == result.report
