// Reads /info and /openapi.json and shows each model: what it takes and gives, how it was proved, and a try-it.

import { el } from "./dom.js";
import { tryIt } from "./try.js";

const base = new URL(".", document.baseURI);
const MANY = 8; // models, from which on one searches
const find = (id) => document.getElementById(id);
const SHORT = { 401: "needs a key", 403: "not with this key" };
const keyValue = () => find("key-value").value;

async function read(path) {
  const headers = keyValue() ? { Authorization: `Bearer ${keyValue()}` } : {};
  const response = await fetch(new URL(path, base), { headers });
  if (response.ok) return response.json();
  if (response.status === 401) find("key").hidden = false;
  const { error } = await response.json();
  throw Object.assign(new Error(error), { short: SHORT[response.status] });
}

async function load() {
  try {
    const [info, api] = await Promise.all([read("info"), read("openapi.json")]);
    show(info, api);
  } catch (error) {
    find("state").replaceChildren(badge(false, error.short || "no answer"), ` ${error.message}`);
  }
}

const asksKeys = (api) => Boolean(api.components?.securitySchemes);

function show(info, api) {
  find("key").hidden = !asksKeys(api);
  const number = info.models.length + info.broken.length;
  const models = `${number} model${number === 1 ? "" : "s"}`;
  const state = badge(info.ready, info.draining ? "shutting down" : info.ready ? "ready" : "not ready");
  find("state").replaceChildren(`${info.version}, ${models}`, state);
  find("models").replaceChildren(...info.models.map((model) => section(model, info, api)), ...info.broken.map(broken));
  find("find").hidden = number <= MANY;
  find("routes").replaceChildren(...routes(api));
  openAsked(find("models").firstElementChild);
}

// The model that the address names (#model-NAME), or else this one.
function openAsked(otherwise) {
  const asked = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const one = asked?.classList.contains("model") ? asked : otherwise;
  if (one instanceof HTMLDetailsElement) one.open = true;
}

const badge = (good, text) => el("span", { className: `badge ${good ? "good" : "bad"}` }, text);

const shape = (spec) => `[${spec.shape.join(", ")}]`;

// A section fills itself when it is opened: there may be hundreds.
function section(model, info, api) {
  const version = model.versions.find((one) => one.version === model.default_version);
  const names = (specs) => specs.map((spec) => `${spec.name} ${spec.datatype} ${shape(spec)}`).join(", ");
  const brief = `${names(version.inputs)} → ${names(version.outputs)}`;
  const details = el(
    "details",
    { className: "model", id: `model-${model.name}` },
    el("summary", {}, el("h2", {}, model.name), badge(model.ready, model.ready ? "ready" : "not ready"), el("span", { className: "brief mono" }, short(brief))),
  );
  details.dataset.name = model.name;
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(bodyOf(model, version, info, api));
  });
  return details;
}

const short = (text) => (text.length > 160 ? `${text.slice(0, 160)} …` : text);

function bodyOf(model, version, info, api) {
  const calls = Object.entries(api.paths)
    .filter(([, methods]) => methods.post?.tags?.[0] === model.name)
    .map(([path, methods]) => ({ path, operation: methods.post }))
    .sort((one, other) => rank(one.path) - rank(other.path));
  const problem = model.versions.map((one) => one.manifest.problem).find(Boolean);
  return el(
    "div",
    { className: "body" },
    problem && !model.ready ? el("p", { className: "why" }, problem) : null,
    el("p", { className: "facts" }, facts(model, version, info)),
    el("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: `Signature of ${model.name}` }, signature(version)),
    calls.length
      ? tryIt(calls, version, base, asksKeys(api) ? keyValue : null)
      : el("p", { className: "facts" }, "This model is too large for /openapi.json to describe; /info has its signature."),
  );
}

// /predict first, then the others; what names no model after them, and one version last.
const STARTS = ["/predict/", "/v2/", "/v1/", "/predictions/"];
const VERSION = /\/versions\/|^\/predictions\/.*\//;
function rank(path) {
  const at = STARTS.findIndex((start) => path.startsWith(start));
  return (at < 0 ? STARTS.length : at) + (VERSION.test(path) ? 10 : 0);
}

function facts(model, version, info) {
  const { fold, parity, image, labels } = version.manifest;
  const others = model.versions.map((one) => one.version).filter((one) => one !== version.version);
  const devices = [...new Set(version.workers.map((one) => one.device))];
  const far = Object.entries(parity || {}).filter(([, one]) => one && one.max_rel !== undefined);
  return [
    `Version ${version.version}${others.length ? ` (also ${others.join(", ")})` : ""}`,
    `${version.backend} on ${devices.join(", ") || "no device"}`,
    version.max_batch_size ? `batches of up to ${version.max_batch_size} rows` : "one request at a time: no dim counts rows",
    model.name === info.default_model ? "the default model" : "",
    fold ? `${fold.folded} of ${fold.found} batch norms folded` : "",
    far.length ? `off the original network by at most ${Math.max(...far.map(([, one]) => one.max_rel)).toExponential(1)}` : "",
    image ? "takes pictures" : "",
    labels ? `${labels.length} labels` : "",
  ].filter(Boolean).join(" · ");
}

function signature(version) {
  const dims = version.manifest.dims || {};
  const rows = [["input", version.inputs], ["output", version.outputs]].flatMap(([kind, specs]) =>
    specs.map((spec) => el("tr", {}, ...[kind, spec.name, spec.datatype, shape(spec)].map((text, at) => el("td", { className: at ? "mono" : "" }, text)))),
  );
  const sizes = Object.entries(dims).map(([name, one]) => `${name}: ${range(one)}`);
  const note = sizes.length ? el("caption", {}, `Sizes of dims: ${sizes.join("; ")}`) : null;
  return el("table", {}, note, el("thead", {}, el("tr", {}, ...["", "name", "datatype", "shape"].map((text) => el("th", {}, text)))), el("tbody", {}, ...rows));
}

const range = (dim) => `${dim.min} to ${dim.max ?? "any"}${dim.multiple_of > 1 ? `, a multiple of ${dim.multiple_of}` : ""}`;

function broken(one) {
  return el("section", { className: "model body" }, el("p", {}, el("h2", {}, one.name), badge(false, "cannot be served")), el("p", { className: "why" }, one.problem));
}

function routes(api) {
  const known = new Set(["The server", "Any model"]);
  return Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => known.has(operation.tags?.[0]))
      .map(([method, operation]) => el("tr", {}, el("td", {}, el("code", {}, `${method.toUpperCase()} ${path}`)), el("td", {}, operation.summary))),
  );
}

find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
find("find-value").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const one of find("models").children) one.hidden = !(one.dataset.name || "").toLowerCase().includes(wanted);
});
addEventListener("hashchange", () => openAsked(null));
load();
