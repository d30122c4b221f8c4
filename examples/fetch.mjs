// JavaScript's own fetch, in Node 18 and later.   node examples/fetch.mjs [URL [MODEL PICTURE]]
import { readFile } from "node:fs/promises"; // for the picture alone; ask() is the same in a browser

const [url = "http://localhost:8000", model, picture] = process.argv.slice(2);

async function ask(path, body, headers) {
  const answer = await fetch(url + path, { method: "POST", body, headers, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) {
    const { error, code } = await answer.json();
    throw new Error(`${answer.status} ${code}: ${error}`);
  }
  return answer;
}

const x = Float32Array.from({ length: 10 }, (_, i) => i);

const json = await ask("/predict/mlp", JSON.stringify({ inputs: [Array.from(x)] }), { "Content-Type": "application/json" });
console.log((await json.json()).outputs.y);

// As bytes, for large arrays: no number becomes text.
const raw = await ask("/predict/mlp", x, { "Content-Type": "application/octet-stream", "X-Tensor-Shape": "1,10" });
console.log(new Float32Array(await raw.arrayBuffer()));

if (picture) {
  const labels = await ask(`/predict/${model}?top=1`, await readFile(picture), { "Content-Type": "image/jpeg" });
  console.log((await labels.json()).top);
}
