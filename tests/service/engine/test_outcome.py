import numpy as np
import pytest

from service.engine.outcome import Outcome
from service.errors import ModelFailed


def test_an_outcome_holds_outputs_or_an_error():
    assert Outcome({"y": np.ones(1)}).error is None
    assert Outcome(None, ModelFailed("no")).outputs is None


@pytest.mark.parametrize(("outputs", "error"), [(None, None), ({}, ModelFailed("no"))])
def test_an_outcome_of_both_or_neither_cannot_be_made(outputs, error):
    with pytest.raises(ValueError, match="either outputs or an error"):
        Outcome(outputs, error)
