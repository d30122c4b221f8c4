"""The whole pass: what it leaves behind, that it is stable, and that the rules cover what they claim."""

import copy
import operator

import pytest
import torch
from torch import nn

from foldserve.models.export.fold import FoldReport, Unfolded, fold_batch_norms
from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.driver import _INTO_CONSUMERS, _INTO_PRODUCER
from foldserve.models.export.fold.norms import batch_norms
from foldserve.models.export.fold.plan import Bypass, NewConstant, NotFoldable, Plan, Rewrite
from tests.models.export.fold.support import (
    TOLERANCE,
    Net,
    capture,
    chain,
    conv,
    difference,
    fold,
    images,
    targets,
    vectors,
)
from tests.models.support import randomise_norms


def _mixed():
    return chain(
        conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)
    )


def test_second_run_changes_nothing():
    folded = fold(_mixed(), images())
    before = (targets(folded.graph), [name for name, _ in folded.graph.named_buffers()], folded.graph.code)
    again = fold_batch_norms(folded.graph)
    after = (targets(folded.graph), [name for name, _ in folded.graph.named_buffers()], folded.graph.code)
    assert before == after
    assert again == FoldReport(1, 0, folded.report.left)


def test_report_names_the_module_and_the_reasons():
    report = fold(_mixed(), images()).report
    reason = (
        "before it, the norm shifts, which relu does not commute with; "
        "after it, the norm shifts, which relu_1 (relu) does not commute with"
    )
    assert report == FoldReport(3, 2, (Unfolded("3", reason),))


def test_existing_tensors_are_never_written_to():
    module = randomise_norms(_mixed()).double().eval()
    before = copy.deepcopy(module.state_dict())
    graph = capture(module, images().double())
    fold_batch_norms(graph)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tensors_that_nothing_reads_any_more_are_removed():
    folded = fold(chain(conv(), nn.BatchNorm2d(4)), images())
    names = {name for name, _ in (*folded.graph.named_parameters(), *folded.graph.named_buffers())}
    assert names == {"conv2d_weight_folded_0", "conv2d_bias_folded_0"}
    read = {str(node.target) for node in folded.graph.graph.find_nodes(op="get_attr")}
    assert names == read


def test_norm_whose_result_nobody_reads_is_not_counted():
    net = Net(lambda net, x: (net.norm(x), x * 2)[1], norm=nn.BatchNorm2d(4))
    assert fold(net, images()).report == FoldReport(0, 0, ())


def test_network_without_norms_is_left_as_it_is():
    graph = capture(chain(nn.Linear(4, 6), nn.ReLU()).eval(), vectors())
    before = graph.code
    assert fold_batch_norms(graph) == FoldReport(0, 0, ())
    assert graph.code == before


def test_new_constants_carry_the_metadata_of_their_tensors():
    folded = fold(chain(conv(4, 6, bias=False), nn.BatchNorm2d(6)), images())
    for node in folded.graph.graph.nodes:
        if node.op == "get_attr":
            held = getattr(folded.graph, str(node.target))
            assert (node.meta["val"].shape, node.meta["val"].dtype) == (held.shape, held.dtype)


def test_folded_graph_can_be_copied_and_exported_again():
    folded = fold(chain(conv(), nn.BatchNorm2d(4)), images())
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    again = capture(copy.deepcopy(folded.graph), images().double())
    with torch.no_grad():
        assert torch.equal(again(x), folded.graph(x))


def test_every_commuting_rule_works_in_both_directions():
    weights_into_producer_only = {"embedding", "group or instance norm", "layer norm"}
    both = {rule.name for rule in _INTO_PRODUCER.values()} - weights_into_producer_only
    assert both == {rule.name for rule in _INTO_CONSUMERS.values()} - {"recurrent layer"}


def test_two_readings_of_one_output_are_made_one():
    """Folding a norm behind the one reading would change what the other sees."""
    net = Net(lambda net, x: net.norm(net.a(x)) + 1, a=conv(), norm=nn.BatchNorm2d(4))
    randomise_norms(net.double().eval())
    graph = capture(net, images().double())
    (norm,) = batch_norms(graph)
    (add,) = norm.value.users
    with graph.graph.inserting_after(norm.value):
        again = graph.graph.call_function(operator.getitem, (norm.call, 0))
        again.meta["val"] = norm.value.meta["val"]
    with graph.graph.inserting_after(add):
        both = graph.graph.call_function(torch.ops.aten.mul.Tensor, (add, again))
    both.meta["val"] = add.meta["val"]
    add.replace_all_uses_with(both, delete_user_cb=lambda user: user is not both)
    graph.recompile()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        wanted = graph(x)
        assert fold_batch_norms(graph) == FoldReport(1, 1, ())
        assert difference(wanted, graph(x)) <= TOLERANCE


def test_output_that_is_its_input_keeps_the_call_between():
    folded = fold(Net(lambda net, x: (x * 1, net.a(x) * 1), a=nn.Linear(4, 4)), vectors())
    assert folded.calls("mul") == 1


def test_plan_is_refused_when_a_node_would_be_edited_twice():
    graph = capture(chain(nn.Linear(4, 6), nn.ReLU()).eval(), vectors())
    (linear,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    edit = Rewrite(linear, linear.target, linear.args)
    with pytest.raises(NotFoldable, match="two ways at once"):
        Plan((edit,)).plus([Bypass(linear, linear.args[0])])


def test_bypassed_chain_ends_at_its_last_source():
    module = Net(lambda net, x: ((x * 2) * 3) * 4).double().eval()
    graph = capture(module, vectors().double())
    first, second, third = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    constant = NewConstant(torch.tensor(24.0, dtype=torch.float64), "all")
    Plan(
        (
            Bypass(third, second),
            Bypass(second, first),
            Rewrite(first, torch.ops.aten.mul.Tensor, (first.args[0], constant)),
        )
    ).apply(graph)
    graph.recompile()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(graph(x), x * 24)


def test_affine_keeps_only_the_axes_along_which_it_varies():
    scale = torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]]])
    affine = Affine.of(scale, torch.full((1, 1, 3), 5.0))
    assert affine.scale.shape == (1, 2, 1)
    assert affine.axes == (1,)
    assert affine.along(1, 2)[0].tolist() == [1.0, 2.0]
    assert affine.along(0, 2) is None
    both = affine.after(Affine.of(torch.full((1, 1, 1), 3.0), torch.ones(1, 1, 1)))
    assert both.scale.flatten().tolist() == [3.0, 6.0]
    assert both.shift.flatten().tolist() == [6.0, 7.0]
    padded = affine.padded(1, 1, 2, 4)
    assert padded.scale.flatten().tolist() == [1.0, 1.0, 2.0, 1.0]
    assert padded.cut(1, 1, 2).shift.flatten().tolist() == [5.0, 5.0]
