"""Sizes of the dynamic axes, other than the example's, at which a file is compared with the network.

One label at a time, so that a file which takes the height for the width is caught, each doubled, by a little, and at
1, where broadcasting goes wrong; then all together. Nothing here knows which sizes a network takes: it may take
multiples only, or none but equal ones, so the sizes come in groups, of each of which one is wanted.
"""

from models.export.example import ROWS, Example

Group = tuple[dict[str, int], ...]


def other_sizes(example: Example) -> tuple[Group, ...]:
    """Groups of {label: size}, every label in each; the first of a group that the network takes is to be tried."""
    own = {
        label: tensor.shape[axis]
        for tensor, axes in zip(example.tensors, example.axes, strict=True)
        for axis, label in axes.items()
        if label != ROWS
    }
    groups: list[Group] = []
    for labels in [*([label] for label in own), *([list(own)] if len(own) > 1 else [])]:

        def changed(*sizes: dict[str, int], labels: list[str] = labels) -> Group:
            every = ({**own, **{label: one[label] for label in labels}} for one in sizes)
            return tuple(one for one in every if one != own)

        double = {label: 2 * size for label, size in own.items()}
        more = {label: size + 1 for label, size in own.items()}
        fewer = {label: max(1, size - 1) for label, size in own.items()}
        half = {label: max(1, size // 2) for label, size in own.items()}
        together = len(labels) > 1
        if together:  # what one label at a time has shown already, if the network takes that
            groups.append(changed(double, more, fewer, half))
        else:
            groups += [changed(double, half), changed(more, fewer)]
        groups.append(changed(dict.fromkeys(own, 1)))
    return tuple(group for group in groups if group)
