"""Which operators of a model onnxruntime left to the CPU: a GPU session may have such, and says nothing of them."""

from collections.abc import Iterable
from typing import Any, Final

from foldserve.service.backends.cuda.options import CPU

RECORD: Final = "session.record_ep_graph_assignment_info"
"""Of onnxruntime's session configuration: "1" lets on_the_cpu() ask."""
_SHOWN: Final = 8


def on_the_cpu(session: Any) -> str:
    """A note for the operator on the operators that run on the CPU; "" when there are none."""
    try:
        assigned: Iterable[Any] = session.get_provider_graph_assignment_info()
    except Exception:  # not recorded, or by a build that does not: then there is nothing to tell
        return ""
    total = 0
    left: list[str] = []
    for part in assigned:
        kinds = [str(node.op_type) for node in part.get_nodes()]
        total += len(kinds)
        if part.ep_name == CPU:
            left += kinds
    if not left:
        return ""
    kinds = sorted(set(left), key=lambda kind: (-left.count(kind), kind))
    shown = ", ".join(f"{left.count(kind)} {kind}" for kind in kinds[:_SHOWN])
    more = ", ..." if len(kinds) > _SHOWN else ""
    return f"{len(left)} of {total} operators run on the CPU: {shown}{more}"
