"""The page at /docs: what this server serves and how to call it, for a person who has just found it.

One HTML text that loads nothing: no script, no font, no picture. Names come from model files and the host
from the request, so everything is escaped, for HTML and for the shell that the commands are pasted into.
"""

import math
import re
import shlex
from html import escape
from typing import Final
from urllib.parse import quote

import orjson

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.codecs import BodyType
from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.settings import ServeSettings

_HOST: Final = re.compile(r"[A-Za-z0-9.\-:\[\]]{1,200}")
# A body of more numbers than this is no example that one reads or pastes.
_EXAMPLE_NUMBERS: Final = 64
_EXAMPLE_DIM: Final = 8

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .2rem 1rem .2rem 0; }
.ready { color: #05603a; }
.waiting { color: #912018; }
@media (prefers-color-scheme: dark) {
  body { background: #161616; color: #eee; }
  pre { background: #262626; }
  a { color: #9cc4ff; }
  .ready { color: #6ce9a6; }
  .waiting { color: #fda29b; }
  h2 { border-color: #444; }
}
"""


def docs_page(status: Status, settings: ServeSettings, scheme: str, host: str) -> str:
    """The whole page.

    Args:
        scheme, host: how the reader reached the server; an implausible host is replaced by the server's own.
    """
    if not _HOST.fullmatch(host):
        host = f"localhost:{settings.port}"
    base = f"{scheme}://{host}"
    models = [model for _, model in sorted(status.models().items())]
    state = '<b class="ready">ready</b>' if status.ready() else '<b class="waiting">not ready</b>'
    routes = "".join(
        f"<tr><td><code>{escape(call)}</code></td><td>{escape(what)}</td></tr>"
        for call, what in (
            ("POST /predict/{model}", "run a model; JSON, raw bytes, npy or a picture"),
            ("POST /predict/{model}/versions/{version}", "run one version of it"),
            ("POST /predict", "run the default model"),
            ("GET /info", "models, signatures, fold and parity reports as JSON"),
            ("GET /health, /v2/health/live, /v2/health/ready", "health"),
            ("GET /metrics", "Prometheus metrics"),
            ("GET /openapi.json", "the routes as an OpenAPI document"),
        )
    )
    sections = "".join(_model_section(model, base) for model in models)
    sections += "".join(
        f'<h2>{escape(name)} <b class="waiting">cannot be served</b></h2><p><a href="/info">/info</a> says why.</p>'
        for name in sorted(status.broken())
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>foldserve</title><style>{_STYLE}</style>"
        f"<h1>foldserve</h1><p>{len(models)} model{'s' * (len(models) != 1)}, {state}. "
        f'<a href="/info">/info</a> &middot; <a href="/metrics">/metrics</a> &middot; '
        f'<a href="/openapi.json">/openapi.json</a></p><table>{routes}</table>'
        "<p>The first dim of every tensor counts the rows, where no model says otherwise. Add <code>-i</code> to see "
        "the headers: the header <code>Server-Timing</code> says where the time went. Errors are "
        '<code>{"error": what, "code": stable word}</code>.</p>'
        f"{sections}</html>\n"
    )


def _model_section(model: ServedModel, base: str) -> str:
    version = model.versions[model.default_version]
    state = "" if model.ready else ' <small class="waiting">not ready</small>'
    others = ", ".join(name for name in model.versions if name != model.default_version)
    also = f" (also served: {escape(others)})" if others else ""
    rows = "".join(
        f"<tr><td>{kind}</td><td><code>{escape(spec.name)}</code></td><td>{spec.datatype}</td>"
        f"<td>{escape(str(list(spec.shape)))}</td></tr>"
        for kind, specs in (("input", version.signature.inputs), ("output", version.signature.outputs))
        for spec in specs
    )
    batches = f"batches of up to {version.max_batch_size} rows"
    if not version.signature.counts_rows:
        batches = "one request at a time: no dim counts rows"
    examples = "".join(
        f"<p>{title}</p><pre>{escape(command)}</pre>"
        for title, command in _examples(model.name, version, base)
    )
    return (
        f"<h2>{escape(model.name)}{state}</h2>"
        f"<p>Version {escape(version.version)}{also}, {escape(version.backend)}, {batches}.</p>"
        f"<table><tr><th></th><th>name</th><th>datatype</th><th>shape</th></tr>{rows}</table>{examples}"
    )


def _examples(model: str, version: ServedVersion, base: str) -> list[tuple[str, str]]:
    signature = version.signature
    url = f"{base}/predict/{quote(model, safe='')}"
    examples = []
    if "image" in version.manifest and len(signature.inputs) == 1:
        examples.append(
            (
                "A picture, JPEG or PNG:",
                f"curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg \\\n  {shlex.quote(f'{url}?top=5')}",
            )
        )
    if sum(math.prod(_example_shape(spec)) for spec in signature.inputs) <= _EXAMPLE_NUMBERS:
        body = shlex.quote(_json_example(signature))
        examples.append(
            ("JSON:", f"curl -H 'Content-Type: application/json' -d {body} \\\n  {shlex.quote(url)}")
        )
    if len(signature.inputs) > 1:
        if not examples:
            names = ", ".join(f'"{spec.name}": [...]' for spec in signature.inputs)
            body = f'{{"inputs": {{{names}}}}}'
            command = (
                f"curl -H 'Content-Type: application/json' -d {shlex.quote(body)} \\\n  {shlex.quote(url)}"
            )
            examples.append(("JSON, with your numbers:", command))
        return examples
    spec = signature.inputs[0]
    if len(signature.outputs) > 1:
        url += f"?output={quote(signature.outputs[0].name, safe='')}"
    target = shlex.quote(url)
    shape = _example_shape(spec)
    examples.append(
        (
            "A NumPy file, answered with one:",
            f"python3 -c \"import numpy as np; np.save('x.npy', np.zeros({shape}, '{spec.dtype.name}'))\"\n"
            f"curl -H 'Content-Type: {BodyType.NPY.value}' --data-binary @x.npy -o y.npy \\\n  {target}",
        )
    )
    size = math.prod(shape) * spec.dtype.itemsize
    headers = f"-H 'Content-Type: {BodyType.RAW.value}'"
    if ANY in spec.row_shape:
        headers += f" -H 'X-Tensor-Shape: {','.join(map(str, shape))}'"
    examples.append(
        (
            f"Raw little-endian {spec.datatype} ({size} bytes are one {'row' if spec.counts_rows else 'request'}):",
            f"head -c {size} /dev/zero > x.bin\ncurl {headers} --data-binary @x.bin -o y.bin \\\n  {target}",
        )
    )
    return examples


def _json_example(signature: Signature) -> str:
    inputs = {spec.name: _zeros(spec, _example_shape(spec)) for spec in signature.inputs}
    value = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return orjson.dumps({"inputs": value}).decode()


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> object:
    if shape:
        return [_zeros(spec, shape[1:]) for _ in range(shape[0])]
    return {"b": False, "f": 0.0}.get(spec.dtype.kind, 0)


def _example_shape(spec: TensorSpec) -> tuple[int, ...]:
    return spec.example_shape(_EXAMPLE_DIM)
