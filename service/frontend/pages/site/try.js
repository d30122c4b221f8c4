// The try-it of one model: which call, what to send, the answer, and the lines of the same call.

import { failed, pretty, shown } from "./answer.js";
import { count, encode, itemBytes, numpyType } from "./bytes.js";
import * as code from "./code.js";
import { el, field } from "./dom.js";

const JSON_TYPE = "application/json";
const RAW_TYPE = "application/octet-stream";
const PICTURES = ["image/jpeg", "image/png"];
const MOST_ZEROS = 4096; // numbers of an example that is made here, in a text that one edits
const LANGUAGES = [["curl", code.curl], ["Python", code.python], ["JavaScript", code.javascript]];

// calls: [{path, operation}] of this model; version: its default one, of /info; key: gives the key, null where none is
// asked for.
export function tryIt(calls, version, base, key) {
  const ways = calls.flatMap((call) => waysOf(call, version));
  const choice = el("select", {}, ...ways.map((way, at) => el("option", { value: String(at) }, way.name)));
  const request = el("div", { className: "request" });
  const outcome = el("p", { className: "outcome", role: "status" }, "Nothing was sent yet.");
  const parts = el("div", { className: "parts" });
  const answer = el("div", { className: "answer" }, el("h3", {}, "Answer"), outcome, parts);
  const lines = codeBlock();
  const send = el("button", { className: "send", type: "submit" }, "Send");
  const form = el("form", {}, el("h3", {}, "Request"), field("Call", choice), request, send);
  let sender = null;

  const update = () => lines.show({ ...sender.call(), keyed: key !== null });
  function choose() {
    sender = senderOf(ways[Number(choice.value)], base, update);
    request.replaceChildren(...sender.controls);
    update();
  }
  choice.addEventListener("change", choose);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const what = await sender.body();
    if (what === null) return;
    send.disabled = true;
    parts.replaceChildren();
    outcome.replaceChildren("Waiting for the answer …");
    const told = await ask(sender.call(), what, key?.()).then(shown).catch(failed);
    outcome.replaceChildren(...told.outcome);
    parts.replaceChildren(...told.parts);
    send.disabled = false;
    answer.scrollIntoView({ block: "nearest" });
  });
  choose();
  return el("div", { className: "try" }, form, answer, lines.element);
}

async function ask(call, body, key) {
  const headers = { "Content-Type": body.type || call.type, ...call.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const began = performance.now();
  const response = await fetch(call.url, { method: "POST", headers, body: body.content });
  const buffer = await response.arrayBuffer();
  return { response, buffer, took: performance.now() - began };
}

// The ways to call an operation that can be tried here: a picture, JSON, bytes.
function waysOf({ path, operation }, version) {
  const content = operation.requestBody?.content || {};
  const shapes = operation["x-example-shapes"] || {};
  const takes = new Set((operation.parameters || []).map((one) => one.name || one.$ref.split("/").pop()));
  const labels = takes.has("top") && Boolean(version.manifest.labels);
  const common = { path, labels, shaped: takes.has("X-Tensor-Shape"), shapes, inputs: version.inputs, outputs: version.outputs };
  const numbers = Object.values(shapes).reduce((sum, shape) => sum + count(shape), 0);
  const ways = [];
  if (content[PICTURES[0]]) ways.push({ ...common, kind: "picture", name: `Picture, POST ${path}` });
  if (content[JSON_TYPE] && (content[JSON_TYPE].example || (numbers && numbers <= MOST_ZEROS))) {
    ways.push({ ...common, kind: "json", example: content[JSON_TYPE].example, name: `JSON, POST ${path}` });
  }
  if (content[RAW_TYPE] && numbers && version.inputs.length === 1) {
    ways.push({ ...common, kind: "raw", example: content[JSON_TYPE]?.example, name: `Raw bytes, POST ${path}` });
  }
  return ways;
}

// Controls for one way, the body that they make, and the call as lines of code show it.
function senderOf(way, base, changed) {
  const controls = [];
  const query = new URLSearchParams();
  let top = null;
  if (way.labels && way.kind !== "raw") {
    top = el("input", { type: "number", min: "1", max: "4096", value: "5", required: true });
    top.addEventListener("input", changed);
  }
  const url = () => {
    if (top && top.value) query.set("top", top.value);
    const text = query.toString();
    return new URL(way.path.slice(1) + (text ? `?${text}` : ""), base).href;
  };
  const makers = { picture: pictureSender, json: jsonSender, raw: rawSender };
  const made = makers[way.kind](way, url, query, changed);
  controls.push(...made.controls);
  if (top) controls.push(field("Labels of the largest", top));
  return { ...made, controls };
}

function jsonSender(way, url, query, changed) {
  const value = pretty(way.example || zeros(way));
  const rows = Math.min(24, Math.max(6, value.split("\n").length + 2));
  const text = el("textarea", { spellcheck: false, value, rows });
  text.addEventListener("input", changed);
  return {
    controls: [el("label", { className: "body-field" }, "Body", text)],
    call: () => ({ url: url(), type: JSON_TYPE, headers: {}, text: text.value }),
    body: async () => ({ content: text.value }),
  };
}

function zeros(way) {
  const nested = (shape) => (shape.length ? Array.from({ length: shape[0] }, () => nested(shape.slice(1))) : 0);
  const values = Object.fromEntries(
    way.inputs.map((spec) => [spec.name, spec.datatype === "BOOL" ? flags(nested(way.shapes[spec.name])) : nested(way.shapes[spec.name])]),
  );
  return { inputs: way.inputs.length === 1 ? values[way.inputs[0].name] : values };
}

const flags = (value) => (Array.isArray(value) ? value.map(flags) : false);

function rawSender(way, url, query) {
  const [spec] = way.inputs;
  const shape = way.shapes[spec.name];
  const numbers = way.example ? [way.example.inputs].flat(Infinity) : null;
  const size = count(shape) * itemBytes(spec.datatype);
  const headers = way.shaped ? { "X-Tensor-Shape": shape.join(",") } : {};
  if (way.outputs.length > 1) query.set("output", way.outputs[0].name);
  const bytes = encode(spec.datatype, shape, numbers);
  const array = { numbers, numpy: numpyType(spec.datatype), size, bytes };
  const what = numbers ? `the numbers ${shortened(numbers)}` : "zeros";
  return {
    controls: [el("p", { className: "facts" }, `${size.toLocaleString("en")} bytes: ${spec.name} ${spec.datatype} [${shape.join(", ")}], ${what}, little-endian.`)],
    call: () => ({ url: url(), type: RAW_TYPE, headers, array }),
    body: async () => ({ content: bytes }),
  };
}

const shortened = (numbers) => numbers.slice(0, 10).join(", ") + (numbers.length > 10 ? ", …" : "");

function pictureSender(way, url, query, changed) {
  const picker = el("input", { type: "file", accept: PICTURES.join(","), required: true });
  const thumbnail = el("img", { alt: "The picture that is sent", hidden: true });
  const drop = el("label", { className: "drop" }, "Drop a JPEG or PNG here, or choose one", picker, thumbnail);
  let address = "";
  function show() {
    if (address) URL.revokeObjectURL(address);
    const [file] = picker.files;
    address = file ? URL.createObjectURL(file) : "";
    thumbnail.hidden = !file;
    if (file) thumbnail.src = address;
    changed();
  }
  picker.addEventListener("change", show);
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) picker.files = event.dataTransfer.files;
    show();
  });
  const type = () => (PICTURES.includes(picker.files[0]?.type) ? picker.files[0].type : PICTURES[0]);
  return {
    controls: [drop],
    call: () => ({ url: url(), type: type(), headers: {}, file: type() === "image/png" ? "photo.png" : "photo.jpg" }),
    body: async () => (picker.files.length ? { content: picker.files[0], type: type() } : null),
  };
}

let groups = 0;

function codeBlock() {
  const text = el("pre", { tabIndex: 0 });
  const copy = el("button", { type: "button" }, "Copy");
  const group = `code${++groups}`;
  let call = null;
  const choices = LANGUAGES.map(([name], at) => el("input", { type: "radio", name: group, value: String(at), checked: at === 0 }));
  const update = () => {
    const at = choices.findIndex((one) => one.checked);
    if (call) text.textContent = LANGUAGES[at][1](call);
  };
  choices.forEach((one) => one.addEventListener("change", update));
  copy.addEventListener("click", async () => {
    getSelection().selectAllChildren(text); // where the clipboard may not be written to, Ctrl-C copies it
    try {
      await navigator.clipboard.writeText(text.textContent);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
  const tabs = choices.map((one, at) => el("label", {}, one, LANGUAGES[at][0]));
  const element = el(
    "div",
    { className: "code" },
    el("h3", {}, "The same call"),
    el("div", { className: "tabs", role: "radiogroup", ariaLabel: "Language" }, ...tabs, copy),
    text,
  );
  return { element, show: (next) => { call = next; update(); } };
}
