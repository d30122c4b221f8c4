"""What an export leaves behind of its graphs: beside their nodes while it runs, and in the process afterwards."""

import gc

import onnx_ir
import torch
from torch import fx

from foldserve.models.export import export_model
from foldserve.models.export.process.tidying import give_back_memory
from tests.models.export.support import ConvNorm, captured, pictures


def test_beside_the_nodes_of_a_captured_graph_is_only_what_an_export_reads():
    noted = {key for node in captured(ConvNorm(), pictures()).graph_module.graph.nodes for key in node.meta}
    assert noted == {"val", "nn_module_stack", "stack_trace"}


def test_neither_torch_nor_onnxscript_keeps_a_graph_of_a_network_that_was_exported(tmp_path):
    def kept():
        give_back_memory()
        every = gc.get_objects()
        nodes = sum(type(one) is fx.Node for one in every)
        return nodes, sum(type(one) is onnx_ir.Graph and one.name == "main_graph" for one in every)

    torch.onnx.export(ConvNorm().eval(), (pictures(),), dynamo=True, verbose=False)
    nodes, graphs = kept()
    assert nodes > 0, "torch forgets by itself now: drop forget_last_trace"
    assert graphs > 0, "onnxscript forgets by itself now: drop forget_last_model"
    export_model(ConvNorm(), (pictures(),), tmp_path, name="m")
    assert kept() == (0, 0)
