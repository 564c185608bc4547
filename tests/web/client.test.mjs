// privserve-client.js against the vectors that the Python client's code made. Run by test_web_client.py.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import * as p from "../../src/privserve/web/privserve-client.js";

const vectors = JSON.parse(readFileSync(new URL("../data/web_vectors.json", import.meta.url)));
const ring = (texts) => BigInt64Array.from(texts, BigInt);
const texts = (elements) => [...elements].map(String);

function assertClose(found, wanted, relative = 1e-9) {
  assert.equal(found.length, wanted.length);
  for (let i = 0; i < wanted.length; i++) {
    const far = Math.abs(found[i] - wanted[i]);
    assert.ok(far <= relative * Math.max(1e-6, Math.abs(wanted[i])), `${i}: ${found[i]}, not ${wanted[i]}`);
  }
}

test("reals are encoded half to even and decoded as Python does", () => {
  for (const { bits, values, elements, reals } of vectors.encodings) {
    assert.deepEqual(texts(p.encode(values, bits)), elements);
    assert.deepEqual([...p.decode(ring(elements), bits)], reals);
  }
});

test("what the ring cannot hold is refused", () => {
  for (const { bits, value } of vectors.too_large) assert.throws(() => p.encode([value], bits), p.InputRangeError);
  for (const value of [NaN, Infinity, -Infinity]) assert.throws(() => p.encode([0, value], 14), p.InputRangeError);
});

test("a secret is split as Python splits it, and the shares sum to it mod 2^64", () => {
  for (const { secret, masks, shares } of vectors.splittings) {
    const told = masks.map(ring);
    assert.deepEqual(p.split(ring(secret), shares.length, () => told.shift()).map(texts), shares);
    assert.deepEqual(texts(p.join(shares.map(ring))), secret);
    assert.deepEqual(texts(p.join(p.split(ring(secret), shares.length))), secret);
  }
});

test("nobody alone is a sharing", () => {
  for (const parties of [1, 0, -1, 1.5, NaN]) assert.throws(() => p.split(ring(["1"]), parties), p.InputError);
  assert.throws(() => new p.Client(["https://a.example"]), p.InputError);
  assert.throws(() => new p.Client(["https://a.example", "https://a.example/"]), p.InputError);
});

test("more randomness than the browser gives at a time is drawn in pieces, and is random to the end", () => {
  const elements = p.randomElements(20001);
  assert.equal(elements.length, 20001);
  assert.equal(new Set(elements).size, 20001);
});

test("every last activation gives what Python's gives", () => {
  for (const { activation, shape, bits, shares, values, logits } of vectors.activations) {
    const parts = shares.map(ring);
    assertClose(p.joined(parts, shape, activation, bits), values);
    assertClose(p.joined(parts, shape, activation, bits, { logits: true }), logits);
  }
});

test("an activation that is not known is refused by its name", () => {
  assert.throws(() => p.applyActivation(new Float64Array(1), [1], { op: "Mystery" }), /Mystery/);
  const { metadata } = structuredClone(vectors.query);
  metadata.outputs[0].parameters.activation = { op: "Mystery" };
  assert.throws(() => p.parseModel(metadata, "bob"), /bob .*Mystery/);
  delete metadata.outputs[0].parameters.activation;
  assert.throws(() => p.parseModel(metadata, "bob"), p.ClusterError);
});

const answered = (vector, model) =>
  vector.answers.map(({ body, length }) => p.parseAnswer(model, "ab", Uint8Array.from(Buffer.from(body, "base64")).buffer, length, 2));

test("a query of several inputs and its answer are read as Python reads them", () => {
  for (const vector of [vectors.query, vectors.guarded]) {
    const model = p.parseModel(vector.metadata);
    const { elements, rows } = p.encodeInputs(model, vector.inputs);
    assert.equal(rows, 2);
    for (const [name, wanted] of Object.entries(vector.elements)) assert.deepEqual(texts(elements[name]), wanted);
    for (const { name, data } of p.decodeOutputs(model, answered(vector, model), rows)) assertClose([...data], vector.outputs[name], 1e-6);
  }
});

test("where a guessed range was left there is an error, and no answer", () => {
  const model = p.parseModel(vectors.left.metadata);
  const [[row, [layer]]] = Object.entries(vectors.left.left);
  const asks = () => p.decodeOutputs(model, answered(vectors.left, model), 2);
  assert.throws(asks, (error) => error instanceof p.GuessedRangeError && error.message.includes(layer) && error.message.includes(`row ${row}`));
});

test("an input that Python refuses is refused", () => {
  const model = p.parseModel(vectors.query.metadata);
  for (const { what, inputs, error } of vectors.refused) {
    const wanted = error === "RangeError" ? p.InputRangeError : p.InputError;
    assert.throws(() => p.encodeInputs(model, inputs), wanted, what);
  }
  const with_ = (value) => ({ ...vectors.query.inputs, "colour ü": [[0, 0], [0, value]] });
  for (const value of ["1", null, undefined, 1n, true]) assert.throws(() => p.encodeInputs(model, with_(value)), { name: "InputError" });
  for (const value of [NaN, Infinity]) assert.throws(() => p.encodeInputs(model, with_(value)), p.InputRangeError);
});

test("data may be flat, with a shape, and has to have as many numbers as that says", () => {
  const model = p.parseModel(vectors.query.metadata);
  const flat = Object.fromEntries(
    Object.entries(vectors.query.inputs).map(([name, x]) => [name, { data: x.flat(3), shape: name === "picture" ? [2, 2, 3] : [2, 2] }]),
  );
  assert.deepEqual(p.encodeInputs(model, flat), p.encodeInputs(model, vectors.query.inputs));
  flat.picture.data.pop();
  assert.throws(() => p.encodeInputs(model, flat), p.InputError);
});

test("a party that changes its answer is named", () => {
  const model = p.parseModel(vectors.query.metadata);
  const [{ body, length }] = vectors.query.answers;
  const bytes = Buffer.from(body, "base64");
  const read = (changed, head = length, id = "ab", rows = 2) => () =>
    p.parseAnswer(model, id, Uint8Array.from(changed).buffer, head, rows, "bob");
  assert.doesNotThrow(read(bytes));
  const text = (from, to) => Buffer.concat([Buffer.from(bytes.subarray(0, length).toString().replace(from, to)), bytes.subarray(length)]);
  const cases = [
    read(bytes, null), read(bytes, "-1"), read(bytes, "1e9"), read(bytes, String(bytes.length + 1)), read(bytes, "3"),
    read(bytes, length, "ac"), read(bytes, length, "ab", 3), read(bytes.subarray(0, -1)),
    read(Buffer.concat([bytes, Buffer.alloc(8)])), read(text("INT64", "FP64 ")), read(text("class", "klass")), read(text("[2, 4]", "[4, 2]")),
    read(text("[2, 4]", "[2,-4]")), read(Buffer.alloc(0), "0"),
  ];
  for (const lies of cases) assert.throws(lies, (error) => error instanceof p.ClusterError && error.message.startsWith("bob"));
});

test("a client shows each party what Python's shows it", async () => {
  for (const { key, cluster, party, authorization } of vectors.credentials) {
    assert.equal(await p.authorization(key, cluster, party), authorization);
  }
  for (const bad of ["", "lab", "lab AAAA", "la b AAAA", `LAB ${"A".repeat(43)}=`]) {
    await assert.rejects(p.authorization(bad, "4b1f0c", "alice"), p.InputError);
  }
  await assert.rejects(p.authorization(vectors.credentials[0].key, "", "alice"), p.InputError);
});

// A cluster of two, played: what its parties answer is up to the test.
function played(change = () => {}) {
  const asked = [];
  const told = (name) => {
    const facts = { party: name, role: "compute", compute_parties: ["alice", "bob"], models: ["two inputs"] };
    const metadata = structuredClone(vectors.query.metadata);
    return { facts, metadata };
  };
  const fetch = async (address, options) => {
    const { hostname, pathname } = new URL(address);
    asked.push({ address, options });
    const said = told(hostname.split(".")[0]);
    change(said, asked);
    if (pathname === "/v2") return Response.json(said.facts);
    if (!pathname.endsWith("/infer")) return Response.json(said.metadata);
    return said.answer ?? new Response(JSON.stringify({ error: "the limit is reached", code: "limit_reached" }), { status: 429 });
  };
  return { asked, client: new p.Client(["https://alice.example", "https://bob.example"], { fetch }) };
}

test("parties that do not agree are not asked", async () => {
  const lies = [
    ({ facts, metadata }) => facts.party === "bob" && (metadata.parameters.input_range = [-1, 3]),
    ({ facts }) => facts.party === "bob" && (facts.role = "dealer"),
    ({ facts }) => facts.party === "bob" && (facts.party = "alice"),
    ({ facts }) => facts.party === "bob" && (facts.compute_parties = ["alice", "bob", "dave"]),
    ({ facts }) => (facts.compute_parties = ["alice", "bob", "dave"]),
    ({ facts }) => (facts.models = ["one", "two"]),
    ({ metadata }) => (metadata.parameters.fraction_bits = "14"),
  ];
  const asks = lies.map(async (lie) => {
    const { client, asked } = played(lie);
    await assert.rejects(client.query(vectors.query.inputs), p.PrivserveError);
    assert.ok(!asked.some(({ options }) => options.method === "POST"), String(lie));
  });
  await Promise.all(asks);
});

test("of an answer without an end no more is read than an answer can have", async () => {
  let read = 0;
  const endless = () => new ReadableStream({ pull: (to) => to.enqueue(new Uint8Array((read += 1 << 16, 1 << 16))) });
  for (const lie of [
    (said, asked) => asked.at(-1).options.method === "POST" && (said.answer = new Response(endless())),
    (said, asked) => asked.at(-1).options.method === "POST" && (said.answer = new Response(endless(), { status: 500 })),
  ]) {
    await assert.rejects(played(lie).client.query(vectors.query.inputs), /longer than any answer/);
  }
  assert.ok(read < 100 << 20);
});

test("each party is sent its own share, and nothing else that says what the input is", async () => {
  const { client, asked } = played();
  await assert.rejects(client.query(vectors.query.inputs), (error) => error.code === "limit_reached" && error.status === 429);
  const sent = asked.filter(({ options }) => options.method === "POST").map(({ options }) => options);
  assert.equal(sent.length, 2);
  const shares = sent.map(({ body, headers }) => {
    const head = JSON.parse(Buffer.from(body).subarray(0, headers["Inference-Header-Content-Length"]).toString());
    assert.deepEqual(Object.keys(head), ["id", "parameters", "inputs"]);
    const bytes = Uint8Array.from(body).slice(Number(headers["Inference-Header-Content-Length"]));
    return [head.id, new BigInt64Array(bytes.buffer)];
  });
  assert.equal(shares[0][0], shares[1][0]);
  const { elements } = vectors.query;
  assert.deepEqual(texts(p.join(shares.map(([, share]) => share))), [...elements.picture, ...elements["colour ü"]]);
  for (const { credentials, redirect, referrerPolicy } of sent) {
    assert.deepEqual([credentials, redirect, referrerPolicy], ["omit", "error", "no-referrer"]);
  }
});

test("a model that was shared anew meanwhile is read and asked once more, under another id", async () => {
  let refusals = 2; // one at each party
  const { client, asked } = played((said, all) => {
    const stale = all.filter(({ options }) => options.method === "POST").length <= 2;
    if (stale && all.at(-1).options.method === "POST" && refusals-- > 0) {
      said.answer = Response.json({ error: "it was replaced", code: "stale_session" }, { status: 409 });
    }
  });
  await assert.rejects(client.query(vectors.query.inputs), (error) => error.code === "limit_reached");
  const ids = asked.filter(({ options }) => options.method === "POST").map(({ options: { body, headers } }) =>
    JSON.parse(Buffer.from(body).subarray(0, headers["Inference-Header-Content-Length"]).toString()).id);
  assert.equal(ids.length, 4);
  assert.equal(new Set(ids).size, 2);
});
