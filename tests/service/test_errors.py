import pickle

import pytest

from foldserve.service import errors
from foldserve.service.errors import ConfigError, MethodNotAllowed, QueueFull, ServiceError, Unauthorized


def every_error() -> list[type[ServiceError]]:
    found = [
        item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, ServiceError)
    ]
    return [item for item in found if item is not ServiceError]


EXPECTED = {
    "BadRequest": (400, "bad_request"),
    "BadJson": (400, "bad_json"),
    "BadTensor": (400, "bad_tensor"),
    "BadPicture": (400, "bad_picture"),
    "Unauthorized": (401, "unauthorized"),
    "UnknownModel": (404, "unknown_model"),
    "UnknownVersion": (404, "unknown_version"),
    "NotFound": (404, "not_found"),
    "Forbidden": (403, "forbidden"),
    "MethodNotAllowed": (405, "method_not_allowed"),
    "NotAcceptable": (406, "not_acceptable"),
    "UnsupportedMediaType": (415, "unsupported_media_type"),
    "TooLarge": (413, "too_large"),
    "QueueFull": (429, "queue_full"),
    "RateLimited": (429, "rate_limited"),
    "ModelFailed": (500, "model_failed"),
    "ModelCrashed": (500, "model_crashed"),
    "Internal": (500, "internal"),
    "NotImplementedHere": (501, "not_implemented"),
    "NotReady": (503, "not_ready"),
    "MetricsUnavailable": (503, "metrics_unavailable"),
    "Draining": (503, "draining"),
    "TooManyConnections": (503, "too_many_connections"),
    "DeadlinePassed": (504, "deadline_passed"),
    "VersionNotSupported": (505, "version_not_supported"),
}


def test_status_and_code_of_every_error_are_the_contract():
    assert {kind.__name__: (kind.status, kind.code) for kind in every_error()} == EXPECTED


@pytest.mark.parametrize("kind", every_error())
def test_every_error_survives_the_way_between_processes(kind):
    sent = kind("what, where, expected, mend")
    got = pickle.loads(pickle.dumps(sent))
    assert type(got) is kind
    assert str(got) == "what, where, expected, mend"
    assert got.headers() == sent.headers()


def test_retry_after_survives_the_way_between_processes():
    assert pickle.loads(pickle.dumps(QueueFull("full", retry_after_s=7.2))).retry_after_s == 7.2


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, "1"), (0.01, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")]
)
def test_retry_after_is_whole_seconds_and_never_zero(seconds, header):
    assert QueueFull("full", retry_after_s=seconds).headers() == {"Retry-After": header}


def test_method_not_allowed_lists_the_methods():
    error = pickle.loads(pickle.dumps(MethodNotAllowed("no", ("GET", "HEAD"))))
    assert error.headers() == {"Allow": "GET, HEAD"}


def test_unauthorized_names_the_scheme():
    assert Unauthorized("no key").headers() == {"WWW-Authenticate": "Bearer"}


def test_config_error_keeps_all_problems():
    error = pickle.loads(pickle.dumps(ConfigError("first", "second")))
    assert error.problems == ("first", "second")
    assert str(error) == "first\nsecond"
