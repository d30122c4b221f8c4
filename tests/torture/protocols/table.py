"""Every protocol in which a model is asked. A new one is a line here, and has its swap checks, its fuzzing and its
bad requests beside all the others."""

from typing import Final

from tests.torture.protocols.kserve_v1 import KSERVE_V1
from tests.torture.protocols.oip import OIP
from tests.torture.protocols.oip_grpc import OIP_GRPC
from tests.torture.protocols.pictures import PICTURES
from tests.torture.protocols.predict import PREDICT
from tests.torture.protocols.seam import Asked, Carried, Protocol

PROTOCOLS: Final = (*PREDICT, *OIP, *KSERVE_V1, *PICTURES, *OIP_GRPC)


def that_take(asked: Asked, carried: Carried) -> list[Protocol]:
    """Those that can carry a question in this way."""
    return [one for one in PROTOCOLS if one.carried is carried and one.takes(asked)]
