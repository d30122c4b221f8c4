// The lines that make the same call from a shell, from Python and from JavaScript, to be copied.
// A call: {url, type, headers, text} with a JSON body, or {..., file} with the body in a file of that name.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(call) {
  const headers = Object.entries({ "Content-Type": call.type, ...call.headers });
  const body = call.file ? `--data-binary @${call.file}` : `-d ${quoted(call.text)}`;
  const prepare = call.size ? `head -c ${call.size} /dev/zero > ${call.file}\n` : "";
  const output = call.answerFile ? ` -o ${call.answerFile}` : "";
  const lines = [...headers.map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`), body + output];
  return `${prepare}curl ${lines.join(" \\\n  ")} \\\n  ${quoted(call.url)}`;
}

export function python(call) {
  const headers = call.file ? { "Content-Type": call.type, ...call.headers } : call.headers;
  const given = Object.keys(headers).length ? `,\n    headers=${literal(headers)}` : "";
  const body = call.size ? `data=bytes(${call.size})` : call.file ? `data=open("${call.file}", "rb")` : jsonOf(call);
  const after = call.answerFile ? "answer.raise_for_status()\nprint(answer.headers, len(answer.content))" : "print(answer.json())";
  return `import requests\n\nanswer = requests.post(\n    ${JSON.stringify(call.url)},\n    ${body}${given},\n)\n${after}`;
}

export function javascript(call) {
  const headers = JSON.stringify({ "Content-Type": call.type, ...call.headers });
  let body = call.size ? `new Uint8Array(${call.size})` : "file, // of an <input type=file>";
  if (!call.file) body = jsonText(call.text) ? `JSON.stringify(${call.text.trim()})` : JSON.stringify(call.text);
  const reading = call.answerFile ? "await answer.arrayBuffer()" : "await answer.json()";
  const comma = call.file && !call.size ? "" : ",";
  return `const answer = await fetch(${JSON.stringify(call.url)}, {\n  method: "POST",\n  headers: ${headers},\n  body: ${body}${comma}\n});\nconsole.log(${reading});`;
}

function jsonText(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

// What is no JSON (yet) goes as it is written, and so do whole numbers that JavaScript would round.
function jsonOf(call) {
  const rounds = /\d{16}/.test(call.text);
  if (rounds || !jsonText(call.text)) return `data=${JSON.stringify(call.text)}.encode()`;
  return `json=${literal(JSON.parse(call.text))}`;
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
