// Asks the parties that stdin names; prints what they said. Run by test_web_client.py.

import { readFileSync } from "node:fs";

import { Client } from "../../src/privserve/web/privserve-client.js";

const { parties, key, cluster, x } = JSON.parse(readFileSync(0));
const client = new Client(parties, { key, cluster, timeout: 30000 });
const failure = async (asking) => asking.then(() => null, (error) => (error.code === "refused" ? error.name : error.code));
const said = {
  probabilities: [...(await client.query(x))[0].data],
  logits: [...(await client.query(x, { logits: true }))[0].data],
  stranger: await failure(new Client(parties, { timeout: 30000 }).query(x)),
  range: await failure(client.query({ ...x, data: x.data.map((v) => v * 1000) })),
};
process.stdout.write(JSON.stringify(said));
