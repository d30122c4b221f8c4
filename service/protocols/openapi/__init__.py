"""What /openapi.json says of each call: JSON Schema of what is sent and answered, and examples that are answered 200.

    tensors.py    a model's inputs and outputs as JSON, and an example of them
    responses.py  what every call may answer: the errors by status, the headers
    predict.py    the calls of /predict
    oip.py        those of /v2
    regions.py    those that register shared memory of clients
    kserve_v1.py  those of /v1, and SageMaker's
    torchserve.py those of /predictions and /models

Each is described twice: for any model, which the path names, and for one that is loaded, with its names, shapes and
labels. Pure functions from signatures to JSON values; a route has its description (protocols/routes.py), and
frontend/pages/openapi.py makes the document of all. The dialect: OpenAPI 3.1, so JSON Schema 2020-12.
"""
