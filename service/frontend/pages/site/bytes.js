// The numbers of one tensor as little-endian bytes, and back: what /predict calls raw.

// Of DataView's methods and typed arrays, the bytes of an element, numpy's name.
const VIEWS = {
  BOOL: ["Uint8", 1, "?"], UINT8: ["Uint8", 1, "u1"], INT8: ["Int8", 1, "i1"], UINT16: ["Uint16", 2, "<u2"],
  INT16: ["Int16", 2, "<i2"], UINT32: ["Uint32", 4, "<u4"], INT32: ["Int32", 4, "<i4"], UINT64: ["BigUint64", 8, "<u8"],
  INT64: ["BigInt64", 8, "<i8"], FP32: ["Float32", 4, "<f4"], FP64: ["Float64", 8, "<f8"], FP16: ["Uint16", 2, "<f2"],
};
const ONE_FP16 = 0x3c00;

export const count = (shape) => shape.reduce((product, size) => product * size, 1);
export const itemBytes = (datatype) => VIEWS[datatype][1];
export const numpyType = (datatype) => VIEWS[datatype][2];

// numbers: as many as the shape takes; null for 0 everywhere.
export function encode(datatype, shape, numbers) {
  const [view, size] = VIEWS[datatype];
  const bytes = new Uint8Array(count(shape) * size);
  const data = new DataView(bytes.buffer);
  (numbers || []).forEach((number, at) => {
    let value = view.startsWith("Big") ? BigInt(number) : Number(number);
    if (datatype === "FP16") value = number >= 0.5 ? ONE_FP16 : 0; // an example needs no more
    data[`set${view}`](at * size, value, true);
  });
  return bytes;
}

export function decode(datatype, buffer) {
  const [view, size] = VIEWS[datatype];
  const data = new DataView(buffer);
  return Array.from({ length: buffer.byteLength / size }, (_, at) => {
    const value = data[`get${view}`](at * size, true);
    if (datatype === "FP16") return half(value);
    return datatype === "BOOL" ? value === 1 : value;
  });
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
