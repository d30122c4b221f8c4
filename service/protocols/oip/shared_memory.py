"""Tensors that lie in shared memory of clients on this host (system shared memory extension), and the calls for it.

A client makes an object (shm_open(3)), registers a part of it as a region, and names the region in the parameters of an
input, which is read from there, or of an output, which is written there. What is registered: ipc/shared_regions.py.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.signature import TensorSpec
from foldserve.service.codecs import raw_codec
from foldserve.service.codecs.protocol import SharedRegions, TakesLong
from foldserve.service.errors import BadRequest
from foldserve.service.protocols.oip.tensors import check_bytes, from_binary

EXTENSION: Final = "system_shared_memory"
SETTING: Final = "--client-shared-memory"
_REGION: Final = "shared_memory_region"
_OFFSET: Final = "shared_memory_offset"
_SIZE: Final = "shared_memory_byte_size"
_LARGEST: Final = 2**63 - 1

Place = tuple[str, int, int, int]
"""Region, offset in it, bytes, and the number of its registration; JSON values."""


def given(regions: SharedRegions | None) -> SharedRegions:
    """The regions, where the server takes them. Raises: BadRequest."""
    if regions is None:
        raise BadRequest(
            "shared memory of clients is off here; send tensors in the request and take them from the answer, or have "
            f"the server started with {SETTING}"
        )
    return regions


def place_of(parameters: Mapping[str, Any], where: str, regions: SharedRegions | None) -> Place | None:
    """Where a tensor's parameters say that it lies; None where they say nothing of it. Raises: BadRequest, TooLarge."""
    if not any(parameters.get(one) is not None for one in (_REGION, _OFFSET, _SIZE)):
        return None
    served = given(regions)
    name = parameters.get(_REGION)
    if not isinstance(name, str):
        raise BadRequest(
            f"parameter {_REGION!r} of {where} is {str(name)[:50]!r}; expected the name of a region"
        )
    offset, nbytes = (_count(parameters, one, where) for one in (_OFFSET, _SIZE))
    if parameters.get(_SIZE) is None:
        raise BadRequest(f"{where} has {_REGION!r} and no {_SIZE!r}; say how many bytes it has there")
    return name, offset, nbytes, served.check(name, offset, nbytes, where)


def read_input(
    place: Place, spec: TensorSpec, shape: tuple[int, ...], regions: SharedRegions | None
) -> np.ndarray:
    """A copy of an input. Raises: BadRequest, BadTensor; TakesLong where others would wait for it."""
    name, offset, nbytes, _ = place
    served = given(regions)
    check_bytes(nbytes, spec, shape)
    if nbytes > served.at_once_bytes:
        raise TakesLong
    return from_binary(memoryview(served.read(name, offset, nbytes, f"input {spec.name!r}")), spec, shape)


def write_output(place: Place, name: str, array: np.ndarray, regions: SharedRegions | None) -> None:
    """Write an output where it was asked for. Raises: BadRequest.

    The answer says of it what it says of any, and nothing of where it lies, as Triton's: NVIDIA's C++ client takes an
    output with parameters for one whose bytes follow.
    """
    region, offset, nbytes, number = place
    where = f"output {name!r}"
    if array.nbytes > nbytes:
        raise BadRequest(
            f"{where} has {array.nbytes} bytes, and {_SIZE!r} is {nbytes}; give it as many in shared memory"
        )
    given(regions).write(region, number, offset, raw_codec.elements(array), where)


def _count(parameters: Mapping[str, Any], name: str, where: str) -> int:
    value = parameters.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise BadRequest(
            f"parameter {name!r} of {where} is {str(value)[:50]!r}; expected a number of bytes, 0 or more"
        )
    return value
