// Node's fetch with a body that is a stream, and its http with an agent that keeps connections. Prints a line for each.
import http from "node:http";

const url = process.argv[2];
const bytes = (value) => new Uint8Array(new Float32Array(10).fill(value).buffer);
const headers = { "Content-Type": "application/octet-stream" };
const first = (buffer) => new Float32Array(buffer)[0];
const numbers = Array.from({ length: 64 }, (_, i) => i);

async function streamed(value) {
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(bytes(value).slice(0, 13));
      controller.enqueue(bytes(value).slice(13));
      controller.close();
    },
  });
  const answer = await fetch(`${url}/predict/mlp`, { method: "POST", body, headers, duplex: "half" });
  return first(await answer.arrayBuffer());
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const kept = (value) =>
  new Promise((resolve, reject) => {
    const request = http.request(`${url}/predict/mlp`, { method: "POST", agent, headers }, (answer) => {
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("end", () => resolve(first(new Uint8Array(Buffer.concat(parts)).buffer)));
    });
    request.on("error", reject);
    request.end(bytes(value));
  });

for (const ask of [streamed, kept]) {
  const answers = await Promise.all(numbers.map(ask));
  console.log(answers.filter((answer, i) => answer === 225 * i).length);
}
agent.destroy();
