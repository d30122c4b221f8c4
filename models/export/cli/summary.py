"""What the terminal shows of a finished export: a table of what was written, how far it was off, and what it took."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foldserve.service.artifact.file_sums import size_text

if TYPE_CHECKING:
    from foldserve.models.export.pipeline import ExportResult


def table(result: "ExportResult") -> str:
    """What the export did, for people: found, folded, left with reasons, parity, sizes, time."""
    report = result.report
    fold = report["fold"]
    rows = [
        ("network", f"{report['source']}, {report['parameter_count']:,} parameters"),
        ("written", str(result.folder)),
        ("inputs", _signature(report["inputs"])),
        *(("", f"fixed: {one['name']} = {one['value']!r}") for one in report.get("fixed_inputs", ())),
        ("outputs", _signature(report["outputs"])),
        *([("rows", "together: one request is served at a time")] if report["rows"] == "together" else []),
        *(("", f"left out: {_left_out(one)}") for one in report.get("left_out", ())),
        *(("", text) for text in _moved(report)),
        *_picture(report),
        *((f"dim {name}", _dim(dim)) for name, dim in report["dims"].items()),
        *(("", f"narrowed: {one['dim']}: {one['reason']}") for one in report["narrowed"]),
        ("batch norms", f"{fold['found']} found, {fold['folded']} folded, {len(fold['left'])} left"),
        *(("", f"left: {left['where']}: {left['reason']}") for left in fold["left"]),
        ("fold, float64", _parity(report["parity"]["fold_float64"])),
        ("precision", report["precision"]),
        *(
            ("", f"weights in {word} were converted to float32")
            for word in report.get("converted_weights", ())
        ),
        *(("", f"in fp32: {kept['where']}: {kept['reason']}") for kept in report["kept_fp32"]),
        ("TorchScript", _form(report, "torchscript", "model.pt")),
        ("ONNX", _form(report, "onnx", "model.onnx")),
        *(("warning", text) for text in report.get("warnings", ())),
        *(("", note) for note in _notes(report["parity"])),
        ("memory", _memory(report["memory"])),
        ("sizes", ", ".join(f"{name} {size_text(entry['size'])}" for name, entry in report["files"].items())),
        ("time", f"{sum(result.seconds.values()):.1f} s, {_slowest(result.seconds)}"),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _form(report: Mapping[str, Any], form: str, file: str) -> str:
    reasons = {missing["file"]: missing["reason"] for missing in report.get("not_written", ())}
    if file in reasons:
        return f"no file: {reasons[file]}"
    opset = f", opset {report['opset']}" if form == "onnx" else ""
    return f"{_parity(report['parity'][form])}{opset}"


def _picture(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a picture becomes the input, and what the columns of the output are called, where the network says so."""
    rows = []
    if "image" in report:
        image = report["image"]
        size = (
            "any size"
            if image["size"] is None
            else f"{image['resize']} to {image['size'][0]} x {image['size'][1]}"
        )
        parity = report["parity"]["pictures"]
        rows = [
            ("pictures", f"JPEG or PNG, {size}, {image['colour']}, {image['layout']}"),
            (
                "",
                f"decoded ones: max difference {parity['max_rel']:.1e} relative from what is declared, in float64",
            ),
        ]
    if "labels" in report:
        labels = report["labels"]
        rows.append(("labels", f"{len(labels)}: {labels[0]} ... {labels[-1]}"))
    return rows


def _notes(parity: Mapping[str, Any]) -> list[str]:
    """What the figures of the files do not say, once for each output."""
    outputs = [entry for form in parity.values() for entry in form.get("outputs", {}).items()]
    return list(dict.fromkeys(f"{name}: {figures['note']}" for name, figures in outputs if "note" in figures))


def _memory(memory: Mapping[str, int]) -> str:
    weights, row = size_text(memory["weights_bytes"]), size_text(memory["row_bytes"])
    return f"weights {weights}, and {row} at most for each row of a batch"


def _signature(specs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{s['name']} {s['datatype']} {'x'.join(map(str, s['shape']))}" for s in specs)


def _left_out(one: Mapping[str, Any]) -> str:
    value = f" = {one['value']!r}" if "value" in one else ""
    return f"{one['name']}{value}: {one['reason']}"


def _moved(report: Mapping[str, Any]) -> list[str]:
    """A line for each tensor whose rows are in another dim in the network itself."""
    return [
        f"transposed: {spec['name']} has its rows in dim {spec['rows_dim']} in the network, in dim 0 when served"
        for spec in (*report["inputs"], *report["outputs"])
        if "rows_dim" in spec
    ]


def _dim(dim: Mapping[str, Any]) -> str:
    most = "or more" if dim["max"] is None else f"to {dim['max']}"
    multiple = f", multiples of {dim['multiple_of']}" if dim["multiple_of"] > 1 else ""
    return f"{dim['min']} {most}{multiple}"


def _parity(parity: Mapping[str, Any]) -> str:
    rows = ", ".join(str(n) for n in parity["rows_tried"])
    return (
        f"max difference {parity['max_rel']:.1e} relative, tolerance {parity['tolerance']:.0e}, rows {rows}"
    )


def _slowest(seconds: Mapping[str, float]) -> str:
    most = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{step} {took:.1f} s" for step, took in most)
