// What came back: status, time and where it went, labels with their scores, the body.

import { decode } from "./bytes.js";
import { el } from "./dom.js";

const MOST_CHARS = 20000;
const MOST_NUMBERS = 1000;

// took: milliseconds as the browser saw them. Returns the line that says how it went, and the rest.
export function shown({ response, buffer, took }) {
  const stages = timing(response.headers.get("server-timing") || "");
  const batch = stages.find((stage) => stage.name === "batch");
  const status = `${response.status} ${response.statusText}`;
  const badge = el("span", { className: `badge ${response.ok ? "good" : "bad"}` }, status);
  const said = ` ${took.toFixed(1)} ms, ${buffer.byteLength.toLocaleString("en")} bytes`;
  const rows = batch ? `, in a batch of ${batch.text} row${batch.text === "1" ? "" : "s"}` : "";
  const value = valueOf(response, buffer);
  const parts = [];
  const run = stages.filter((stage) => stage.ms !== null);
  if (run.length) parts.push(bar(run));
  if (value.top) parts.push(...(Array.isArray(value.top[0]) ? value.top.slice(0, 10) : [value.top]).map(scores));
  parts.push(el("pre", { tabIndex: 0 }, value.text));
  return { outcome: [badge, said + rows], parts };
}

export function failed(error) {
  const text = `No answer: ${error.message}. Is the server still running, and this page its own?`;
  return { outcome: [el("span", { className: "why" }, text)], parts: [] };
}

// The entries of a Server-Timing header: name;dur=1.5, batch;desc="8".
export function timing(header) {
  return Array.from(header.matchAll(/([\w-]+)(?:;dur=([\d.]+))?(?:;desc="([^"]*)")?(?:,|$)/g), ([, name, ms, text]) => ({
    name,
    ms: ms === undefined ? null : Number(ms),
    text,
  }));
}

function bar(stages) {
  const total = stages.reduce((sum, stage) => sum + stage.ms, 0) || 1;
  const pieces = stages.map((stage, at) => {
    const piece = el("span", { className: `s${at % 6}`, title: `${stage.name} ${stage.ms} ms` });
    piece.style.flexGrow = String(stage.ms / total);
    return piece;
  });
  const legend = stages.map((stage, at) =>
    el("li", { className: `s${at % 6}` }, el("span", {}, `${stage.name} ${stage.ms.toFixed(3)} ms`)),
  );
  return el(
    "div",
    { className: "timing" },
    el("h3", {}, "Time in the server"),
    el("div", { className: "bar", ariaHidden: "true" }, ...pieces),
    el("ul", { className: "legend" }, ...legend),
  );
}

function scores(top) {
  const largest = Math.max(...top.map((entry) => Math.abs(entry.score))) || 1;
  const rows = top.map((entry) => {
    const fill = el("div", { className: "fill" });
    fill.style.width = `${(100 * Math.max(0, entry.score)) / largest}%`;
    return el("tr", {}, el("td", {}, entry.label), el("td", {}, String(entry.score)), el("td", { ariaHidden: "true" }, fill));
  });
  return el("table", { className: "scores" }, el("tbody", {}, ...rows));
}

// The body as text, and the labels in it.
function valueOf(response, buffer) {
  const type = (response.headers.get("content-type") || "").split(";")[0];
  if (type === "application/octet-stream") return { text: rawText(response, buffer) };
  const text = new TextDecoder().decode(buffer);
  if (type !== "application/json" || text.length > MOST_CHARS * 10) return { text: cut(text) };
  const value = JSON.parse(text);
  const { top, ...rest } = value;
  return { top, text: cut(Array.isArray(top) ? pretty(rest) : pretty(value)) };
}

function rawText(response, buffer) {
  const datatype = response.headers.get("x-tensor-datatype");
  if (!datatype) return `${buffer.byteLength} bytes`;
  const head = `${response.headers.get("x-tensor-name")} ${datatype} [${response.headers.get("x-tensor-shape")}]`;
  const numbers = decode(datatype, buffer);
  const more = numbers.length > MOST_NUMBERS ? ` … and ${numbers.length - MOST_NUMBERS} more` : "";
  return `${head}\n${numbers.slice(0, MOST_NUMBERS).join(", ")}${more}`;
}

const cut = (text) =>
  text.length > MOST_CHARS ? `${text.slice(0, MOST_CHARS)}\n… and ${(text.length - MOST_CHARS).toLocaleString("en")} characters more` : text;

// JSON with a line for each key and each row, and none for each number.
export function pretty(value, indent = "") {
  const deeper = `${indent}  `;
  if (Array.isArray(value) && value.some((item) => item !== null && typeof item === "object")) {
    return `[\n${value.map((item) => deeper + pretty(item, deeper)).join(",\n")}\n${indent}]`;
  }
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    const lines = Object.entries(value).map(([key, item]) => `${deeper}${JSON.stringify(key)}: ${pretty(item, deeper)}`);
    return lines.length ? `{\n${lines.join(",\n")}\n${indent}}` : "{}";
  }
  return Array.isArray(value) ? `[${value.map((item) => JSON.stringify(item)).join(", ")}]` : JSON.stringify(value);
}
