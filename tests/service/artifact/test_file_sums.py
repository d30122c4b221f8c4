from pathlib import Path

from foldserve.service.artifact.file_sums import sum_of
from foldserve.service.artifact.manifest import FileEntry


def test_sum_of_a_file_is_its_sha256_and_its_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    # The published test vector of FIPS 180-2 for "abc".
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sum_of(tmp_path / "f") == FileEntry(digest, 3)
