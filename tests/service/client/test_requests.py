"""What a call sends, step by step: carried out by nobody."""

import json

import numpy as np

from foldserve.service.client.answers import Answer, Prediction
from foldserve.service.client.calls import HEAD_LENGTH
from foldserve.service.client.requests import How, Requests, Send, Steps


def metadata(name: str) -> Answer:
    return Answer(200, {}, json.dumps({"inputs": [{"name": name, "datatype": "FP32"}]}).encode())


def numbers(values: list[float]) -> Answer:
    data = np.array(values, "<f4").tobytes()
    output = {
        "name": "y",
        "datatype": "FP32",
        "shape": [len(values)],
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"outputs": [output]}).encode()
    return Answer(200, {HEAD_LENGTH: str(len(head))}, head + data)


REFUSED = Answer(400, {}, b'{"error": "no input x", "code": "bad_tensor"}')


def carried_out(steps: Steps[Prediction], answers: list[Answer]) -> tuple[list[str], Prediction]:
    """Give these answers, in order. Returns: the paths that were asked, and the result."""
    paths = []
    step = next(steps)
    for answer in answers:
        assert isinstance(step, Send)
        paths.append(step.call.path)
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return paths, end.value
    raise AssertionError(f"more was asked: {step}")


def test_model_whose_input_has_another_name_by_now_is_asked_once_what_it_takes() -> None:
    requests = Requests(30.0, 3)
    infer, asked = "/v2/models/m/infer", "/v2/models/m"
    paths, _ = carried_out(requests.predict("m", [1.0], How()), [metadata("x"), numbers([1.0])])
    assert paths == [asked, infer]
    answers = [REFUSED, metadata("z"), numbers([2.0])]
    paths, told = carried_out(requests.predict("m", [1.0], How()), answers)
    assert paths == [infer, asked, infer]
    assert told.outputs["y"].tolist() == [2.0]
    paths, _ = carried_out(requests.predict("m", [1.0], How()), [numbers([3.0])])
    assert paths == [infer]
