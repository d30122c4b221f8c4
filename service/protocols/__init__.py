"""What clients send and are answered: one file or folder a protocol.

    predict.py    POST /predict: JSON, raw bytes, a NumPy file or a picture
    pictures.py   pictures as bodies, and in JSON
    top.py        the largest scores of an answer, with their labels
    oip/          /v2, and over gRPC: the Open Inference Protocol
    kserve_v1.py  /v1: the protocol of TensorFlow Serving and KServe v1; SageMaker's calls
    torchserve.py /predictions: TorchServe's calls
    openapi/      what /openapi.json says of their calls
    lookup.py     which model version a call asks for
    heads.py      what the heads of inference requests have in common
    routes.py     one call that the server answers

A protocol is an implementation of codecs/protocol.py, and calls that read its heads. PROTOCOLS lists them all.
"""

from typing import Final

from foldserve.service.codecs.protocol import InferenceProtocol
from foldserve.service.protocols.kserve_v1 import KSERVE_V1, KSERVE_V1_PICTURES
from foldserve.service.protocols.oip.grpc_infer import OIP_GRPC, OIP_GRPC_RAW
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.predict import PICTURE, PREDICT
from foldserve.service.protocols.torchserve import TORCHSERVE, TORCHSERVE_ANY, TORCHSERVE_PICTURE

PROTOCOLS: Final[tuple[InferenceProtocol, ...]] = (
    *PREDICT.values(),
    PICTURE,
    OIP_JSON,
    OIP_BINARY,
    OIP_GRPC,
    OIP_GRPC_RAW,
    KSERVE_V1,
    KSERVE_V1_PICTURES,
    TORCHSERVE,
    TORCHSERVE_ANY,
    TORCHSERVE_PICTURE,
)
