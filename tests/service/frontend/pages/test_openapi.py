"""The document as it is made: when, of what, how large it may become. That it is true: tests/e2e/test_openapi.py."""

import asyncio
import json
import time

import jsonschema
import pytest

from foldserve.service.artifact.dims import DimLink, DimRange
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.frontend.pages.openapi import OpenApiDocument
from foldserve.service.protocols.openapi.tensors import example_inputs
from tests.service.protocols.picture_models import picture_models
from tests.service.support import (
    DOUBLE,
    PAIR,
    SETTINGS,
    NumpyModels,
    app_of,
    call,
    double,
    models,
    one_model,
    served,
)


def many(count):
    names = [f"m{number:04}" for number in range(count)]
    functions = {(name, "1"): double for name in names}
    return NumpyModels(functions, {name: served(name, ("1", DOUBLE)) for name in names})


def made(document):
    return json.loads(asyncio.run(document.body()))


def of(behind):
    return OpenApiDocument(app_of().routes(), behind, SETTINGS)


def test_a_model_that_is_loaded_or_unloaded_comes_and_goes():
    behind = one_model()
    document = of(behind)
    assert "/predict/other" not in made(document)["paths"]
    behind.served = {**behind.served, "other": served("other", ("1", PAIR))}
    assert "/predict/other" in made(document)["paths"]
    behind.served = one_model().served
    assert "/predict/other" not in made(document)["paths"]


def test_the_document_is_made_again_only_when_what_it_says_has_changed():
    behind = one_model()
    document = of(behind)
    first = asyncio.run(document.body())
    assert asyncio.run(document.body()) is first
    behind.served = {"double": served("double", ("1", DOUBLE), ready=False)}
    assert asyncio.run(document.body()) == first, "whether a model is ready is /info's to tell"


def test_calls_of_a_default_model_are_there_when_there_is_one():
    assert "/predict" in made(of(models()))["paths"]
    without = call(app_of(default_model=None), "GET", "/openapi.json").json()
    assert not {"/predict", "/invocations"} & without["paths"].keys()


def test_many_models_are_described_in_turns_that_are_short_and_in_a_document_that_is_bounded():
    document = of(many(100))

    async def main():
        turns = []
        making = asyncio.create_task(document.body())
        while not making.done():
            before_s = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - before_s)
        return len(making.result()), turns

    size, turns = asyncio.run(main())
    assert size < 1.5 * 2**20
    assert len(turns) > 100
    # A turn takes 0.3 ms, the last 2 ms: of CPU time, for other programs run too. More where caches are shared.
    assert max(turns) < 0.02
    assert len(asyncio.run(of(many(1000)).body())) < 4 * 2**20


def test_what_has_no_room_is_said_and_described_for_any_model():
    behind = many(300)
    wide = Signature(tuple(TensorSpec(f"x{n}", "FP32", (-1, 2)) for n in range(70)), DOUBLE.outputs)
    behind.served["a-wide"] = served("a-wide", ("1", wide))
    document = made(of(behind))
    assert "/predict/a-wide" not in document["paths"]
    assert "/predict/m0000" in document["paths"]
    assert "51 more models" in document["info"]["description"]
    assert "/predict/{model}" in document["paths"]


def test_keys_are_spoken_of_only_where_the_server_asks_for_them():
    routes = app_of().routes()
    without = made(of(one_model()))
    assert "security" not in without
    assert "securitySchemes" not in without["components"]
    responses = {
        status for path in without["paths"].values() for one in path.values() for status in one["responses"]
    }
    assert not {"401", "403"} & responses
    keyed = made(OpenApiDocument(routes, one_model(), SETTINGS, asks_keys=True))
    assert keyed["security"] == [{"bearer": ["infer"]}, {"header": ["infer"]}]
    for path, methods in keyed["paths"].items():
        for said in methods.values():
            is_open = said.get("security") == []
            assert is_open == ("401" not in said["responses"]), path
    assert keyed["paths"]["/metrics"]["get"]["security"] == [{"bearer": ["metrics"]}, {"header": ["metrics"]}]
    assert keyed["paths"]["/docs"]["get"]["security"] == []


def test_a_torchserve_body_is_a_row_rows_or_an_object_of_one_known_key():
    paths = call(app_of(), "GET", "/openapi.json").json()["paths"]
    schema = paths["/predictions/double"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    row = [1.0, 2.0, 3.0]
    for body in (row, [row, row], {"data": row}, {"body": [row]}, {"instances": [row]}, {"inputs": [row]}):
        jsonschema.validate(body, schema)
    for body in ([], 1, {"data": row, "body": row}, {"x": row}, [[1.0]], {"instances": row}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body, schema)
    assert paths["/predictions/double"].keys() == {"post", "put"}


def test_pictures_and_labels_are_of_the_models_that_have_them():
    document = call(app_of(picture_models()), "GET", "/openapi.json").json()
    post = document["paths"]["/predict/colours"]["post"]
    assert post["requestBody"]["content"].keys() >= {"image/jpeg", "image/png", "multipart/form-data"}
    assert "image/jpeg" not in post["responses"]["200"]["content"]
    assert {"$ref": "#/components/parameters/top"} in post["parameters"]
    assert "image/jpeg" not in document["paths"]["/predict/arrays"]["post"]["requestBody"]["content"]


SIZES = TensorSpec("long", "FP32", (-1, -1), ("rows", "long"), (None, DimRange(3, 9, 3)))
HALVES = TensorSpec("short", "INT64", (-1, -1), ("rows", "short"), (None, DimRange(2, 6)))


@pytest.mark.parametrize(
    ("signature", "shapes"),
    [
        (DOUBLE, {"x": (1, 3)}),
        (PAIR, {"a": (1, 2), "b": (1,)}),
        (Signature((SIZES,), DOUBLE.outputs), {"long": (1, 9)}),
        (
            Signature((SIZES, HALVES), DOUBLE.outputs, (DimLink("long", "short", 1, 3),)),
            {"long": (1, 9), "short": (1, 6)},
        ),
        (
            Signature(
                (TensorSpec("s", "BOOL", (), counts_rows=False),),
                (TensorSpec("y", "FP32", (), counts_rows=False),),
            ),
            {"s": ()},
        ),
    ],
)
def test_an_example_has_sizes_that_the_model_takes(signature, shapes):
    inputs = example_inputs(signature)
    assert {name: array.shape for name, array in inputs.items()} == shapes
    signature.check_inputs(inputs)


@pytest.mark.parametrize("shape", [(-1, 3, 224, 224), (-1, 65)])
def test_of_many_numbers_there_is_no_example(shape):
    assert example_inputs(Signature((TensorSpec("x", "FP32", shape),), DOUBLE.outputs)) is None
