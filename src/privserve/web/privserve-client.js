/**
 * The client of privserve for browsers and Node (20 or newer): splits a query into shares, sends one
 * to each compute party, joins their answers. One file, no dependency; types: privserve-client.d.ts.
 *
 *     import { Client } from "./privserve-client.js";
 *     const client = new Client(["http://localhost:4001", "http://localhost:4002"]);
 *     const [{ data }] = await client.query({ data: pixels, shape: [1, 28, 28, 1] });
 *
 * The plaintext never leaves the caller: what goes out is a share per party, each by itself uniform
 * and independent of the input, and the answer's shares are added up here, where the model's last
 * activation is computed too. It does what the Python client does over HTTP, and both go by the same
 * test vectors (tests/data/web_vectors.json).
 *
 * Arithmetic. A real x is the ring element round(x * 2^f) in Z_2^64, half to even, in two's
 * complement. All of it is in BigInt64Array, whose elements wrap mod 2^64 by themselves: no number
 * that has more than 53 bits is ever a Number before it is decoded.
 *
 * Whom it trusts: TLS says that a host is the one in the address, and nothing here says which party
 * that is. Give addresses that you have from their operators, of hosts run by different people. Two
 * addresses of one operator see the input.
 */

const MAX_FRACTION_BITS = 512;
const MAX_AXES = 16;
const MAX_ELEMENTS = 2 ** 31;
const MAX_TENSORS = 1024;
const RANDOM_BYTES = 65536; // that getRandomValues gives at a time
const SWITCH_SECONDS = 5; // for parties to agree on a model that is being replaced
const SWITCH_POLL_MS = 50;
const HEADER_LENGTH = "Inference-Header-Content-Length";
const GUARDS = "privserve/guards";
const DATATYPE = "INT64";
const NORMALISING = ["Softmax", "LogSoftmax"];
const CONTEXT = "privserve client credential 1";
const SCHEME = "PrivserveClient";
const MOST_FACTS = 16 << 20; // bytes of what a party says of itself, of its model, or why it refuses
const MOST_HEAD = 1 << 20; // of an answer's JSON
const MOST_WORDS = 64; // of a guard's flag
const KEY_BYTES = 32;

if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1) {
  throw new Error("privserve-client.js needs a little-endian machine, as all browsers' are");
}

// -- errors ---------------------------------------------------------------------------------------

/** What went wrong: `code` is the party's word for it where a party refused, `status` its HTTP status. */
export class PrivserveError extends Error {
  constructor(message, { code = "refused", status = 0, party = "" } = {}) {
    super(message);
    this.name = new.target.name;
    this.code = code;
    this.status = status;
    this.party = party;
  }
}
/** The input does not fit the model: shape, rows, names, type. */
export class InputError extends PrivserveError {}
/** A value of the input is outside the range that the model was shared for. */
export class InputRangeError extends InputError {}
/** The input takes a deep model out of a range that was guessed: there is no answer. */
export class GuessedRangeError extends InputRangeError {}
/** A party cannot be reached, or the parties' answers do not fit together. */
export class ClusterError extends PrivserveError {}
/** A party refused the query; `code` says why: limit_reached, not_serving, unknown_client, ... */
export class QueryError extends PrivserveError {}

// -- ring elements and shares ---------------------------------------------------------------------

/** x rounded to a whole number, half to even; exact for every finite double. */
export function roundHalfEven(x) {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest < 0.5) return floor;
  if (rest > 0.5) return floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * The ring elements of real `values`: round(x * 2^fractionBits), half to even.
 * Throws InputRangeError for NaN, infinity and magnitudes of 2^(62 - fractionBits) and above.
 */
export function encode(values, fractionBits) {
  const scale = 2 ** fractionBits;
  const elements = new BigInt64Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const scaled = values[i] * scale;
    if (!Number.isFinite(scaled)) {
      throw new InputRangeError("the values contain NaN or infinity; clean the input before it is encoded");
    }
    if (Math.abs(scaled) >= 2 ** 62) {
      throw new InputRangeError(
        `a value is outside +-2^${62 - fractionBits}, the range that ${fractionBits} fraction bits leave in 64 bits`,
      );
    }
    elements[i] = BigInt(roundHalfEven(scaled));
  }
  return elements;
}

/** The reals of ring elements: Float64Array of element / 2^fractionBits. */
export function decode(elements, fractionBits) {
  const scale = 2 ** fractionBits;
  return Float64Array.from(elements, (element) => Number(element) / scale);
}

/** `length` uniform ring elements from the browser's CSPRNG. */
export function randomElements(length) {
  const bytes = new Uint8Array(8 * length);
  for (let at = 0; at < bytes.length; at += RANDOM_BYTES) {
    globalThis.crypto.getRandomValues(bytes.subarray(at, at + RANDOM_BYTES));
  }
  return new BigInt64Array(bytes.buffer);
}

/**
 * Additive shares of `secret` mod 2^64 for at least two parties: all but the last are uniform, and
 * the last is the secret less the others; so any but all of them are uniform and independent of it.
 * `random` is for test vectors: give no other one.
 */
export function split(secret, parties, random = randomElements) {
  if (!Number.isInteger(parties) || parties < 2) {
    throw new InputError(`a secret is shared among at least 2 parties, not ${parties}`);
  }
  const last = BigInt64Array.from(secret);
  const shares = [];
  for (let party = 1; party < parties; party++) {
    const share = random(last.length);
    if (!(share instanceof BigInt64Array) || share.length !== last.length) {
      throw new InputError("there is not as much randomness as the secret needs");
    }
    for (let i = 0; i < last.length; i++) last[i] -= share[i]; // wraps mod 2^64
    shares.push(share);
  }
  return [...shares, last];
}

/** The secret that additive shares of equal length sum to, mod 2^64. */
export function join(shares) {
  const secret = BigInt64Array.from(shares[0]);
  for (const share of shares.slice(1)) {
    if (share.length !== secret.length) throw new ClusterError("shares of different lengths were to be joined");
    for (let i = 0; i < secret.length; i++) secret[i] += share[i];
  }
  return secret;
}

/** A share's bytes as they go over the wire, little-endian. */
export function toBytes(elements) {
  return new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength);
}

// -- what a client computes: the model's last activation ------------------------------------------

const FUNCTIONS = {
  Sigmoid: (x) => 0.5 * (1 + Math.tanh(0.5 * x)),
  Tanh: Math.tanh,
  Softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
  Softsign: (x) => x / (1 + Math.abs(x)),
  Exp: Math.exp,
  Sqrt: (x) => Math.sqrt(Math.max(x, 0)), // rounding may have made a zero negative
};

/** The runs along one axis of a tensor: calls `visit` with the indices of each. */
function along(shape, axis, visit) {
  const length = shape[axis];
  const step = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const total = shape.reduce((a, b) => a * b, 1);
  const indices = new Array(length);
  for (let block = 0; block < total; block += length * step) {
    for (let inner = 0; inner < step; inner++) {
      for (let i = 0; i < length; i++) indices[i] = block + inner + i * step;
      visit(indices);
    }
  }
}

/** `activation` ({op, axis} or null) of `values` (Float64Array of `shape`); throws ClusterError for an unknown op. */
export function applyActivation(values, shape, activation) {
  if (activation === null) return values;
  const { op } = activation;
  if (Object.hasOwn(FUNCTIONS, op)) return values.map(FUNCTIONS[op]);
  if (!NORMALISING.includes(op)) throw new ClusterError(`the parties ask for the unknown activation ${op}`);
  const result = new Float64Array(values.length);
  along(shape, axisOf(activation, shape.length), (indices) => {
    const most = indices.reduce((m, i) => Math.max(m, values[i]), -Infinity);
    const sum = indices.reduce((s, i) => s + Math.exp(values[i] - most), 0);
    for (const i of indices) {
      const logit = values[i] - most;
      result[i] = op === "Softmax" ? Math.exp(logit) / sum : logit - Math.log(sum);
    }
  });
  return result;
}

function axisOf(activation, axes) {
  return ((activation.axis % axes) + axes) % axes;
}

/**
 * An output of `shape` from its shares, activation applied: Float64Array. The parties hide a constant
 * mod 2^64 in what is normalised along an axis, so differences from the axis' first element are
 * taken, in the ring, before anything is decoded. logits: what goes into the activation, but
 * log-probabilities where that is normalised.
 */
export function joined(shares, shape, activation, fractionBits, { logits = false } = {}) {
  const elements = join(shares);
  const isNormalised = activation !== null && NORMALISING.includes(activation.op);
  if (isNormalised) {
    along(shape, axisOf(activation, shape.length), (indices) => {
      const first = elements[indices[0]];
      for (const i of indices) elements[i] -= first;
    });
  }
  const values = decode(elements, fractionBits);
  if (!logits) return applyActivation(values, shape, activation);
  return isNormalised ? applyActivation(values, shape, { ...activation, op: "LogSoftmax" }) : values;
}

// -- what the parties say of the model ------------------------------------------------------------

function size(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

function isWhole(value, low, high) {
  return Number.isInteger(value) && value >= low && value <= high;
}

function malformed(party, why) {
  return new ClusterError(`${party} gave a malformed answer: ${why}`, { party });
}

function checkTensor(party, tensor, kind) {
  const isTensor = tensor !== null && typeof tensor === "object" && typeof tensor.name === "string";
  if (!isTensor) throw malformed(party, `an ${kind} has no name`);
  const shape = Array.isArray(tensor.shape) ? tensor.shape.slice(1) : null;
  const isShape =
    shape !== null &&
    shape.length < MAX_AXES &&
    shape.every((axis) => isWhole(axis, 1, MAX_ELEMENTS)) &&
    size(shape) <= MAX_ELEMENTS;
  if (!isShape || tensor.datatype !== DATATYPE) throw malformed(party, `the ${kind} '${tensor.name}' has no valid shape`);
  return { name: tensor.name, shape };
}

function checkActivation(party, name, activation, axes) {
  if (activation === null) return null;
  const op = activation?.op;
  if (Object.hasOwn(FUNCTIONS, op)) return { op };
  if (!NORMALISING.includes(op)) {
    throw malformed(party, `the output '${name}' asks for the activation '${op}', which this client does not know`);
  }
  const { axis } = activation;
  if (!isWhole(axis, -axes, axes - 1) || axisOf(activation, axes) === 0) {
    throw malformed(party, `the output '${name}' is normalised along no axis of a row`);
  }
  return { op, axis };
}

function listOf(party, value, what) {
  if (!Array.isArray(value) || value.length < 1 || value.length > MAX_TENSORS) {
    throw malformed(party, `'${what}' is no list of tensors`);
  }
  return value;
}

function checkNames(party, tensors) {
  if (new Set(tensors.map(({ name }) => name)).size !== tensors.length) throw malformed(party, "it uses a name twice");
  return tensors;
}

/** The model that a party's metadata (`GET /v2/models/NAME`) describe; throws ClusterError for what is none. */
export function parseModel(described, party = "a party") {
  if (described === null || typeof described !== "object") throw malformed(party, "it describes no model");
  const facts = described.parameters ?? {};
  const inputs = listOf(party, described.inputs, "inputs").map((tensor) => checkTensor(party, tensor, "input"));
  const outputs = listOf(party, described.outputs, "outputs").map((tensor) => {
    const { name, shape } = checkTensor(party, tensor, "output");
    const said = tensor.parameters ?? {};
    const activation = checkActivation(party, name, said.activation === undefined ? {} : said.activation, 1 + shape.length);
    if (!isWhole(said.rounded_bits, 0, 63)) throw malformed(party, `the output '${name}' has no 'rounded_bits'`);
    return { name, shape, activation };
  });
  for (const bits of [facts.fraction_bits, facts.output_fraction_bits]) {
    if (!isWhole(bits, -MAX_FRACTION_BITS, MAX_FRACTION_BITS)) throw malformed(party, "it has no number of fraction bits");
  }
  const range = facts.input_range;
  const isRange = Array.isArray(range) && range.length === 2 && range.every(Number.isFinite) && range[0] < range[1];
  if (!isRange) throw malformed(party, "it has no range of inputs");
  const guards = facts.guards ?? [];
  if (!Array.isArray(guards) || !guards.every((text) => typeof text === "string")) throw malformed(party, "it has no list of guards");
  const session = described.versions?.[0];
  if (typeof described.name !== "string" || typeof session !== "string") throw malformed(party, "it has no name or version");
  if (!isWhole(facts.max_rows, 1, MAX_ELEMENTS)) throw malformed(party, "it has no number of rows");
  return {
    name: described.name,
    session,
    inputs: checkNames(party, inputs),
    outputs: checkNames(party, outputs),
    fractionBits: facts.fraction_bits,
    outputFractionBits: facts.output_fraction_bits,
    inputRange: [range[0], range[1]],
    maxRows: facts.max_rows,
    guards: [...guards],
  };
}

// -- inputs ---------------------------------------------------------------------------------------

function flattened(name, nested) {
  const shape = [];
  for (let item = nested; Array.isArray(item) || ArrayBuffer.isView(item); item = item[0]) shape.push(item.length);
  const data = [];
  const walk = (item, depth) => {
    const isList = Array.isArray(item) || ArrayBuffer.isView(item);
    if (isList !== depth < shape.length || (isList && item.length !== shape[depth])) {
      throw new InputError(`input '${name}' is not a rectangular array`);
    }
    if (!isList) data.push(item);
    else for (const part of item) walk(part, depth + 1);
  };
  walk(nested, 0);
  return { data, shape };
}

function isTensor(x) {
  return x !== null && typeof x === "object" && "data" in x && "shape" in x;
}

function givenByName(model, x) {
  const names = model.inputs.map(({ name }) => name);
  const isSingle = Array.isArray(x) || ArrayBuffer.isView(x) || isTensor(x);
  if (isSingle && names.length === 1) return { [names[0]]: x };
  const given = x !== null && typeof x === "object" && !isSingle ? Object.keys(x) : [];
  if (given.length !== names.length || !names.every((name) => given.includes(name))) {
    throw new InputError(`the model takes the inputs ${names.join(", ")}; give an object with a tensor for each`);
  }
  return x;
}

function batched(shape) {
  return `(${["B", ...shape].join(", ")})`;
}

/**
 * The ring elements of a query, BigInt64Array by input, and its rows. x: nested arrays or {data, shape},
 * with a batch axis, in the Keras layout; an object by name where the model has several inputs.
 * Throws InputError and InputRangeError for what does not fit: nothing is cut, cast or clipped.
 */
export function encodeInputs(model, x) {
  const given = givenByName(model, x);
  const [low, high] = model.inputRange;
  const elements = {};
  let rows = 0;
  for (const { name, shape } of model.inputs) {
    const { data, shape: has } = isTensor(given[name]) ? given[name] : flattened(name, given[name]);
    const isShape = Array.isArray(has) && has.length === shape.length + 1 && shape.every((axis, i) => has[i + 1] === axis);
    if (!isShape) {
      throw new InputError(`input '${name}' must have the shape ${batched(shape)}, not (${[...(has ?? [])].join(", ")})`);
    }
    if (!isWhole(has[0], 1, model.maxRows)) throw new InputError(`a query holds 1 to ${model.maxRows} rows, not ${has[0]}`);
    if (data.length !== size(has)) throw new InputError(`input '${name}' of this shape needs ${size(has)} numbers, not ${data.length}`);
    for (let i = 0; i < data.length; i++) {
      const value = data[i];
      if (typeof value !== "number") throw new InputError(`input '${name}' must hold real numbers, not ${typeof value}`);
      if (!Number.isFinite(value)) throw new InputRangeError(`input '${name}' contains NaN or infinity`);
      if (value < low || value > high) {
        throw new InputRangeError(
          `input '${name}' holds values outside [${low}, ${high}], for which the model was shared; scale the input as ` +
            "for training (pixels / 255?) or have the model shared with a wider input range",
        );
      }
    }
    if (rows && rows !== has[0]) throw new InputError("all inputs need the same number of rows");
    rows = has[0];
    elements[name] = encode(data, model.fractionBits);
  }
  return { elements, rows };
}

// -- messages -------------------------------------------------------------------------------------

/** A query's body for one party, and the length of its JSON: the share's tensors follow it as bytes. */
export function formatQuery(model, id, share, rows, milliseconds = 0) {
  const inputs = model.inputs.map(({ name, shape }) => ({
    name,
    shape: [rows, ...shape],
    datatype: DATATYPE,
    parameters: { binary_data_size: share[name].byteLength },
  }));
  const parameters = { binary_data_output: true, ...(milliseconds > 0 ? { timeout: 1000 * Math.ceil(milliseconds) } : {}) };
  const head = new TextEncoder().encode(JSON.stringify({ id, parameters, inputs }));
  const parts = [head, ...model.inputs.map(({ name }) => toBytes(share[name]))];
  const body = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    body.set(part, at);
    at += part.length;
  }
  return { body, headerLength: head.length };
}

/** One party's shares of the outputs by name (and of the guards' flags); throws ClusterError for anything else. */
export function parseAnswer(model, id, body, headerLength, rows, party = "a party") {
  const bytes = new Uint8Array(body);
  if (!/^\d{1,15}$/.test(headerLength ?? "") || Number(headerLength) > bytes.length) {
    throw malformed(party, `there is no ${HEADER_LENGTH} within the body`);
  }
  let at = Number(headerLength);
  let message;
  try {
    message = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, at)));
  } catch {
    throw malformed(party, "it does not begin with a JSON object");
  }
  if (message?.id !== id) throw malformed(party, "it answers another query");
  const wanted = new Map(model.outputs.map(({ name, shape }) => [name, [rows, ...shape]]));
  if (model.guards.length) wanted.set(GUARDS, [rows, model.guards.length, null]);
  const found = {};
  for (const tensor of Array.isArray(message.outputs) ? message.outputs : []) {
    const shape = wanted.get(tensor?.name);
    const has = tensor?.shape;
    const isShape =
      Array.isArray(shape) &&
      Array.isArray(has) &&
      has.length === shape.length &&
      shape.every((axis, i) => (axis === null ? isWhole(has[i], 1, MOST_WORDS) : axis === has[i]));
    const length = isShape ? 8 * size(has) : -1;
    if (tensor?.datatype !== DATATYPE || tensor.parameters?.binary_data_size !== length || at + length > bytes.length) {
      throw malformed(party, "a tensor of it is not one of the model's outputs");
    }
    found[tensor.name] = new BigInt64Array(bytes.slice(at, at + length).buffer);
    wanted.delete(tensor.name);
    at += length;
  }
  if (wanted.size) throw malformed(party, `it lacks ${[...wanted.keys()].join(", ")}`);
  if (at !== bytes.length) throw malformed(party, "bytes follow its last tensor");
  return found;
}

/**
 * The outputs in the model's order, {name, shape, data: Float32Array} each, from every party's
 * `parseAnswer`. Throws GuessedRangeError where the guards say that there is no answer.
 */
export function decodeOutputs(model, answers, rows, { logits = false } = {}) {
  if (model.guards.length) checkGuards(model, answers, rows);
  return model.outputs.map(({ name, shape, activation }) => {
    const whole = [rows, ...shape];
    const shares = answers.map((answer) => answer[name]);
    const values = joined(shares, whole, activation, model.outputFractionBits, { logits });
    return { name, shape: whole, data: Float32Array.from(values) };
  });
}

function checkGuards(model, answers, rows) {
  const flags = join(answers.map((answer) => answer[GUARDS]));
  const bad = flags.findIndex((flag) => flag !== 0n);
  if (bad < 0) return;
  const words = flags.length / (rows * model.guards.length);
  const layer = model.guards[Math.floor(bad / words) % model.guards.length];
  const row = Math.floor(bad / (words * model.guards.length));
  throw new GuessedRangeError(
    `there is no answer: in layer '${layer}' a value left the range that was guessed from samples when the model was ` +
      `shared (row ${row}, perhaps others); leave such rows away, or have the model shared with calibration samples that include their like`,
  );
}

// -- credentials ----------------------------------------------------------------------------------

function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  } catch {
    return new Uint8Array(0);
  }
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}

/**
 * The Authorization header that shows a client to one party, and no other: HKDF-SHA256 of its key.
 * keyText: what its client.key file holds; cluster: the cluster's id. Throws InputError for what is no key.
 */
export async function authorization(keyText, cluster, party) {
  const [name, text, ...rest] = keyText.trim().split(/\s+/);
  const key = fromBase64(text ?? "");
  if (rest.length || key.length !== KEY_BYTES || !/^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/.test(name)) {
    throw new InputError("this is no client's key; its file has one line: the client's name and the key");
  }
  if (!cluster) throw new InputError("a key goes with the id of the cluster that it is for; give `cluster`");
  const { subtle } = globalThis.crypto;
  if (!subtle) throw new InputError("a key needs a secure context: https, or http on localhost");
  const utf8 = new TextEncoder();
  const info = utf8.encode(`${CONTEXT}\n${name}\n${party}`);
  const material = await subtle.importKey("raw", key, "HKDF", false, ["deriveBits"]);
  const bits = await subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt: utf8.encode(cluster), info }, material, 8 * KEY_BYTES);
  return `${SCHEME} ${name}.${toBase64(new Uint8Array(bits))}`;
}

// -- asking ---------------------------------------------------------------------------------------

function isSame(a, b) {
  if (a === b) return true;
  if (a === null || b === null || typeof a !== "object" || typeof b !== "object" || Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && isSame(a[key], b[key]));
}

function refused(body, party, status) {
  const message = body?.error;
  const code = body?.code;
  if (typeof message !== "string" || typeof code !== "string") {
    return new QueryError(`${party} answers HTTP ${status}; is it privserve?`, { status, party });
  }
  const Kind = code === "bad_input" ? InputError : QueryError;
  return new Kind(`${party} refuses: ${message}`, { code, status, party });
}

/** Queries one model of a cluster, asking all of its compute parties. */
export class Client {
  #addresses;
  #wanted;
  #cluster;
  #key;
  #timeout;
  #fetch;
  #model = null;
  #parties = [];

  /**
   * addresses: of all compute parties, as http(s)://host:port. model: which one, where there are
   * several. key, cluster: the text of a client.key and the cluster's id, where the parties ask for
   * one. timeout: milliseconds that a query may take. fetch: another one than the global.
   */
  constructor(addresses, { model = "", key = "", cluster = "", timeout = 60000, fetch = undefined } = {}) {
    const origins = [...addresses].map((address) => {
      const url = new URL(address);
      if (!["http:", "https:"].includes(url.protocol) || url.username || url.search || url.hash || url.pathname !== "/") {
        throw new InputError(`'${address}' is no address of a party; write https://host:port`);
      }
      return url.origin;
    });
    if (origins.length < 2 || new Set(origins).size !== origins.length) {
      throw new InputError("give the addresses of all compute parties, which are at least two, each once");
    }
    this.#addresses = origins;
    this.#wanted = model;
    this.#key = key;
    this.#cluster = cluster;
    this.#timeout = timeout;
    this.#fetch = fetch ?? ((...given) => globalThis.fetch(...given));
  }

  /** The model that the parties agreed on last; null before. */
  get model() {
    return this.#model;
  }

  /** Who was asked, {name, address} each; empty before a model was read. */
  get parties() {
    return this.#parties.map(({ name, address }) => ({ name, address }));
  }

  /** Ask all parties of the model, and check that they say the same; again: also where it is known. */
  async readModel({ again = false } = {}) {
    if (this.#model !== null && !again) return this.#model;
    const deadline = Date.now() + 1000 * SWITCH_SECONDS;
    for (;;) {
      const about = await this.#together((address, signal) => this.#about(address, signal));
      const parties = this.#checkRoles(about);
      const odd = about.find(({ model }) => !isSame(model, about[0].model));
      if (odd === undefined) {
        const model = parseModel(about[0].model, parties[0].name);
        for (const party of parties) {
          party.authorization = this.#key ? await authorization(this.#key, this.#cluster, party.name) : "";
        }
        this.#wanted = model.name; // also where others are added to it
        this.#parties = parties;
        this.#model = model;
        return model;
      }
      if (Date.now() > deadline) {
        throw new ClusterError(`${odd.facts.party} describes another model than the others do`, { party: odd.facts.party });
      }
      await new Promise((resolve) => setTimeout(resolve, SWITCH_POLL_MS));
    }
  }

  /** The model's prediction for x: its outputs in order, {name, shape, data: Float32Array} each. See `encodeInputs`. */
  async query(x, { logits = false } = {}) {
    return (await this.ask(x, { logits })).outputs;
  }

  /**
   * As `query`, and what each party saw: {outputs, rows, seen: [{name, address, sent, received}]},
   * the share of every input that it was sent and of every output that it answered with.
   */
  async ask(x, { logits = false } = {}) {
    let model = await this.readModel();
    const deadline = Date.now() + 1000 * SWITCH_SECONDS;
    for (;;) {
      try {
        return await this.#askOnce(model, x, logits);
      } catch (error) {
        if (error.code !== "stale_session" && error.status !== 404) throw error;
        this.#model = null; // what is known of number formats belongs to a session that is over
        if (error.code !== "stale_session" || Date.now() > deadline) throw error;
      }
      const { name } = model;
      model = await this.readModel();
      if (model.name !== name) throw new QueryError(`there is no model '${name}' any more; '${model.name}' is served now`, { status: 404 });
    }
  }

  async #askOnce(model, x, logits) {
    const { elements, rows } = encodeInputs(model, x);
    const parties = this.#parties;
    const shares = parties.map(() => ({}));
    for (const [name, secret] of Object.entries(elements)) {
      split(secret, parties.length).forEach((share, rank) => (shares[rank][name] = share));
    }
    const id = Array.from(globalThis.crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
    const path = `/v2/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.session)}/infer`;
    const answers = await this.#together(async (address, signal, rank) => {
      const party = parties[rank];
      const { body, headerLength } = formatQuery(model, id, shares[rank], rows, this.#timeout);
      const headers = { "Content-Type": "application/octet-stream", [HEADER_LENGTH]: String(headerLength) };
      if (party.authorization) headers.Authorization = party.authorization;
      const numbers = model.outputs.reduce((sum, { shape }) => sum + size(shape), MOST_WORDS * model.guards.length);
      const [answer, bytes] = await this.#call(address, path, signal, 8 * rows * numbers + MOST_HEAD, { method: "POST", headers, body });
      return parseAnswer(model, id, bytes, answer.headers.get(HEADER_LENGTH), rows, party.name);
    });
    const outputs = decodeOutputs(model, answers, rows, { logits });
    const seen = parties.map(({ name, address }, rank) => ({ name, address, sent: shares[rank], received: answers[rank] }));
    return { outputs, rows, seen };
  }

  /** Ask every party at the same time; the first that fails ends the others. */
  async #together(ask) {
    const ending = new AbortController();
    const timer = setTimeout(() => ending.abort(new Error("timeout")), this.#timeout);
    try {
      return await Promise.all(this.#addresses.map((address, rank) => ask(address, ending.signal, rank)));
    } finally {
      clearTimeout(timer);
      ending.abort();
    }
  }

  async #about(address, signal) {
    const facts = await this.#json(address, "/v2", signal);
    if (facts.role !== "compute") return { address, facts, model: null };
    const names = Array.isArray(facts.models) ? facts.models.map(String) : [];
    if (!this.#wanted && names.length > 1) {
      throw new QueryError(`there are several models: ${names.join(", ")}; name the one that you mean`, { status: 409 });
    }
    const name = this.#wanted || names[0] || "none";
    return { address, facts, model: await this.#json(address, `/v2/models/${encodeURIComponent(name)}`, signal) };
  }

  #checkRoles(about) {
    const expected = Array.isArray(about[0].facts.compute_parties) ? about[0].facts.compute_parties.map(String) : [];
    for (const { address, facts } of about) {
      if (facts.role !== "compute") {
        throw new InputError(`${facts.party} at ${address} is the dealer and takes no queries; name the compute parties instead`);
      }
      if (!isSame(facts.compute_parties, expected)) throw new ClusterError("the parties do not agree on who computes");
    }
    const found = about.map(({ facts }) => String(facts.party));
    if (!isSame([...found].sort(), [...expected].sort())) {
      throw new InputError(
        `a query needs every compute party (${expected.join(", ")}), but the addresses given are those of ${found.join(", ")}`,
      );
    }
    return about.map(({ address }, rank) => ({ name: found[rank], address }));
  }

  async #json(address, path, signal) {
    const [, bytes] = await this.#call(address, path, signal, MOST_FACTS);
    const facts = parsed(bytes);
    if (facts === null || typeof facts !== "object" || Array.isArray(facts)) throw malformed(address, "it is no JSON object");
    return facts;
  }

  async #call(address, path, signal, most, request = {}) {
    let answer;
    let bytes;
    try {
      answer = await this.#fetch(address + path, {
        ...request,
        signal,
        mode: "cors",
        credentials: "omit",
        cache: "no-store",
        redirect: "error",
        referrerPolicy: "no-referrer",
      });
      bytes = await readAll(answer, answer.ok ? most : MOST_FACTS);
    } catch (error) {
      const why = signal.aborted ? "did not answer in time" : `cannot be reached (${error.message})`;
      throw new ClusterError(`${address} ${why}`, { party: address });
    }
    if (bytes === null) throw malformed(address, "it is longer than any answer to this can be");
    if (!answer.ok) throw refused(parsed(bytes), address, answer.status);
    return [answer, bytes];
  }
}

/** An answer's bytes; null where they are more than `most`, of which no more are read. */
async function readAll(answer, most) {
  const chunks = [];
  let length = 0;
  for (const reader = answer.body?.getReader(); reader !== undefined; ) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > most) {
      reader.cancel().catch(() => {});
      return null;
    }
    chunks.push(value);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes.buffer;
}

function parsed(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
}
