"""The bytes of networks that can be counted by hand. A float32 is 4 bytes, a float16 2; one row each."""

import pytest
import torch
from torch import nn

from foldserve.models.export.artifact.memory import measure_memory
from foldserve.models.export.precision.convert import convert
from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.registry import resolve
from foldserve.service.artifact.manifest import Memory
from tests.models.export.support import Fn, captured

ROWS = torch.ones(3, 10)


def test_a_layer_holds_its_input_and_its_output():
    # Weights 10*20 + 20 numbers; 10 in and 20 out.
    assert measure_memory(captured(nn.Linear(10, 20), ROWS)) == Memory(4 * 220, 4 * 30)


def test_a_chain_peaks_at_its_two_largest_neighbours_beside_the_input():
    target = resolve("mlp")  # 10 → 20 → 5 with an activation behind each but the last
    # At the activation: the input 10, the hidden values 20 before it and 20 after it. 10*20+20 + 20*5+5 weights.
    memory = measure_memory(captured(target.module, *target.example_inputs))
    assert memory == Memory(4 * 325, 4 * (10 + 20 + 20))


def test_a_value_that_is_read_again_later_lives_until_then():
    def residual(x):
        y = torch.relu(x)
        return torch.sigmoid(torch.tanh(y)) + y

    # At the sigmoid: x, y, tanh(y) and its result, 10 numbers each; at the sum: x, y, the sigmoid and the answer.
    assert measure_memory(captured(Fn(residual), ROWS)) == Memory(0, 4 * 40)


def test_a_reshape_takes_no_memory_and_keeps_what_it_is_a_view_of():
    def reshaped(x):
        y = torch.relu(x).view(-1, 2, 5)
        return torch.tanh(y).flatten(1)

    # At the tanh: x, the relu and the tanh.
    assert measure_memory(captured(Fn(reshaped), ROWS)) == Memory(0, 4 * 30)


def test_every_output_lives_to_the_end():
    def several(x):
        first = torch.relu(x)
        return first, torch.tanh(x), torch.sigmoid(x)

    assert measure_memory(captured(Fn(several), ROWS)) == Memory(0, 4 * 40)


def test_an_input_given_back_is_a_second_copy():
    assert measure_memory(captured(nn.Identity(), ROWS)) == Memory(0, 4 * 20)


def test_several_results_of_one_operator_are_counted_together_and_no_longer_than_needed():
    def halves(x):
        left, right = x.split(5, dim=1)
        return torch.relu(left + right)

    # At the sum: x 10, both halves 10, the sum 5; at the relu: x 10, the sum 5, the answer 5.
    assert measure_memory(captured(Fn(halves), ROWS)) == Memory(0, 4 * 25)


def test_a_weight_used_twice_is_there_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 10, bias=False)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    assert measure_memory(captured(Tied(), ROWS)).weights_bytes == 4 * 100


def test_bytes_and_whole_numbers_have_their_own_size():
    # 10 bytes in, 10 float32 made of them, 10 more for the answer.
    x = torch.ones(3, 10, dtype=torch.uint8)
    assert measure_memory(captured(Fn(lambda x: x.float() / 255), x)) == Memory(0, 10 + 4 * 20)


@pytest.mark.parametrize("word", ["fp16", "bf16"])
def test_in_sixteen_bits_weights_and_inner_values_are_half_as_large(word):
    graph = captured(nn.Linear(10, 20), ROWS)
    lower = convert(graph, PRECISIONS[word], [(ROWS,)]).captured
    # At the last cast: the input 10 float32, the result 20 in 16 bits and 20 in float32.
    assert measure_memory(lower) == Memory(2 * 220, 4 * 10 + 2 * 20 + 4 * 20)


def test_the_number_of_rows_in_the_example_does_not_matter():
    assert measure_memory(captured(nn.Linear(10, 20), ROWS)) == measure_memory(
        captured(nn.Linear(10, 20), torch.ones(64, 10))
    )
