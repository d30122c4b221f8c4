// The lines that make the same call from a shell, from Python and from JavaScript, to be copied.
// A call: {url, type, headers} and its body: `text`, which is JSON; `file`, a picture; or `array` {numbers, numpy, size},
// raw numbers, null for zeros in so many bytes, which are answered with such. `keyed`: it needs a key, which the lines take
// from the environment (KEY) and never show.

const BEARER = "Bearer $KEY";
const keyOf = (call) => (call.keyed ? { Authorization: BEARER } : {});
// What a language writes instead of the text.
const withKey = (lines, written) => lines.replace(JSON.stringify(BEARER), () => written);

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(call) {
  const headers = Object.entries({ "Content-Type": call.type, ...call.headers });
  const body = call.text === undefined ? `--data-binary @${call.file || "x.bin -o y.bin"}` : `-d ${quoted(call.text)}`;
  const key = call.keyed ? [`-H "Authorization: ${BEARER}"`] : [];
  const lines = [...key, ...headers.map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`), body];
  return `${call.array ? fileOf(call.array) : ""}curl ${lines.join(" \\\n  ")} \\\n  ${quoted(call.url)}`;
}

// A line that makes x.bin.
function fileOf({ numbers, numpy, size }) {
  if (!numbers) return `head -c ${size} /dev/zero > x.bin\n`;
  return `python3 -c "import numpy as np; np.array(${literal(numbers)}, '${numpy}').tofile('x.bin')"\n`;
}

export function python(call) {
  const needed = { ...keyOf(call), ...call.headers };
  const [body, headers] = pythonBody(call, needed);
  const written = withKey(literal(headers), '"Bearer " + os.environ["KEY"]');
  const given = Object.keys(headers).length ? `,\n    headers=${written}` : "";
  const imports = `${call.keyed ? "import os\n\n" : ""}${call.array?.numbers ? "import numpy as np\n" : ""}`;
  const after = call.array ? "answer.raise_for_status()\nprint(answer.headers, answer.content)" : "print(answer.json())";
  return `${imports}import requests\n\nanswer = requests.post(\n    ${JSON.stringify(call.url)},\n    ${body}${given},\n)\n${after}`;
}

// The body as an argument, and the headers that it needs.
function pythonBody({ type, text, file, array }, headers) {
  const typed = { "Content-Type": type, ...headers };
  if (file) return [`data=open("${file}", "rb")`, typed];
  if (array?.numbers) return [`data=np.array(${literal(array.numbers)}, "${array.numpy}").tobytes()`, typed];
  if (array) return [`data=bytes(${array.size})`, typed];
  // What is no JSON (yet) goes as it is written, and so do whole numbers that JavaScript would round.
  if (/\d{16}/.test(text) || !isJson(text)) return [`data=${JSON.stringify(text)}.encode()`, typed];
  return [`json=${literal(JSON.parse(text))}`, headers];
}

export function javascript(call) {
  const given = JSON.stringify({ ...keyOf(call), "Content-Type": call.type, ...call.headers });
  const headers = withKey(given, "`Bearer ${process.env.KEY}`");
  const reading = call.array ? "await answer.arrayBuffer()" : "await answer.json()";
  return `const answer = await fetch(${JSON.stringify(call.url)}, {\n  method: "POST",\n  headers: ${headers},\n  body: ${javascriptBody(call)}\n});\nconsole.log(${reading});`;
}

function javascriptBody({ text, array }) {
  if (array) return array.numbers ? `new Uint8Array([${array.bytes}]), // ${array.numbers}` : `new Uint8Array(${array.size}),`;
  if (text === undefined) return "file, // of an <input type=file>";
  return `${isJson(text) && !/\d{16}/.test(text) ? `JSON.stringify(${text.trim()})` : JSON.stringify(text)},`;
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

// A JSON value as Python writes it.
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
