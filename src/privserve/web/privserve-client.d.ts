/** Types of privserve-client.js: the client of privserve for browsers and Node. */

/** Reals in the Keras layout with a batch axis: nested arrays, or flat data with a shape. */
export type Nested = number[] | Float32Array | Float64Array | Nested[];
export interface Tensor {
  data: ArrayLike<number>;
  shape: readonly number[];
}
export type Input = Tensor | Nested;
/** One tensor where the model has one input; else one for each, by name. */
export type Inputs = Input | { [name: string]: Input };

export interface Activation {
  op: "Softmax" | "LogSoftmax" | "Sigmoid" | "Tanh" | "Softplus" | "Softsign" | "Exp" | "Sqrt";
  /** Of the output with its batch axis; where the op normalises along one. */
  axis?: number;
}
export interface Model {
  name: string;
  /** Which sharing of the model this is; number formats change with it. */
  session: string;
  /** Shapes are without the batch axis. */
  inputs: { name: string; shape: number[] }[];
  outputs: { name: string; shape: number[]; activation: Activation | null }[];
  fractionBits: number;
  outputFractionBits: number;
  /** What an input's values may be. */
  inputRange: [number, number];
  /** Of one query. */
  maxRows: number;
  /** Layers whose guessed ranges the parties check. */
  guards: string[];
}
export interface Output {
  name: string;
  /** With the batch axis. */
  shape: number[];
  data: Float32Array;
}
/** Ring elements by the name of their tensor. */
export interface Shares {
  [name: string]: BigInt64Array;
}
export interface Seen {
  name: string;
  address: string;
  /** This party's share of every input: all that it was sent of them. */
  sent: Shares;
  /** This party's share of every output. */
  received: Shares;
}
export interface Answer {
  outputs: Output[];
  rows: number;
  seen: Seen[];
}

export interface ErrorFacts {
  code?: string;
  status?: number;
  party?: string;
}
export class PrivserveError extends Error {
  constructor(message: string, facts?: ErrorFacts);
  /** The party's word for it, where one refused: limit_reached, not_serving, unknown_client, ... */
  code: string;
  /** The HTTP status of a refusal; 0 where there was none. */
  status: number;
  party: string;
}
export class InputError extends PrivserveError {}
export class InputRangeError extends InputError {}
export class GuessedRangeError extends InputRangeError {}
export class ClusterError extends PrivserveError {}
export class QueryError extends PrivserveError {}

export interface ClientOptions {
  /** Which model, where the parties have several. */
  model?: string;
  /** The text of a client.key, where the parties ask for one; `cluster` goes with it. */
  key?: string;
  /** The cluster's id. */
  cluster?: string;
  /** Milliseconds that a query may take. */
  timeout?: number;
  /** Another one than the global. */
  fetch?: typeof fetch;
}
export class Client {
  /** addresses: of all compute parties, as https://host:port, in any order. */
  constructor(addresses: Iterable<string>, options?: ClientOptions);
  readonly model: Model | null;
  readonly parties: { name: string; address: string }[];
  readModel(options?: { again?: boolean }): Promise<Model>;
  /** logits: what goes into the last activation; log-probabilities where that is a softmax. */
  query(x: Inputs, options?: { logits?: boolean }): Promise<Output[]>;
  ask(x: Inputs, options?: { logits?: boolean }): Promise<Answer>;
}

export function roundHalfEven(x: number): number;
export function encode(values: ArrayLike<number>, fractionBits: number): BigInt64Array;
export function decode(elements: BigInt64Array, fractionBits: number): Float64Array;
export function randomElements(length: number): BigInt64Array;
export function split(
  secret: BigInt64Array,
  parties: number,
  random?: (length: number) => BigInt64Array,
): BigInt64Array[];
export function join(shares: BigInt64Array[]): BigInt64Array;
export function toBytes(elements: BigInt64Array): Uint8Array;
export function applyActivation(values: Float64Array, shape: number[], activation: Activation | null): Float64Array;
export function joined(
  shares: BigInt64Array[],
  shape: number[],
  activation: Activation | null,
  fractionBits: number,
  options?: { logits?: boolean },
): Float64Array;
/** described: a party's answer to `GET /v2/models/NAME`. */
export function parseModel(described: unknown, party?: string): Model;
export function encodeInputs(model: Model, x: Inputs): { elements: Shares; rows: number };
export function formatQuery(
  model: Model,
  id: string,
  share: Shares,
  rows: number,
  milliseconds?: number,
): { body: Uint8Array; headerLength: number };
export function parseAnswer(
  model: Model,
  id: string,
  body: ArrayBuffer,
  headerLength: string | null,
  rows: number,
  party?: string,
): Shares;
export function decodeOutputs(model: Model, answers: Shares[], rows: number, options?: { logits?: boolean }): Output[];
export function authorization(keyText: string, cluster: string, party: string): Promise<string>;
