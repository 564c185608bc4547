/** The page: draws, asks, and shows what came of it. All texts go in as text, never as markup. */

import { Client, toBytes } from "../src/privserve/web/privserve-client.js";
import { CELL, CELLS, SIZE, blank, dab, digitOf, sample, stroke } from "./drawing.js";
import { LANG, WORDS, preferred } from "./words.js";

const $ = (id) => document.getElementById(id);
const paper = $("paper");

let language = preferred(navigator.languages);
let ink = blank();
let last = null; // where the hand was, in pixels of the ink
let brush = { column: 14, row: 14, isShown: false }; // where the keys are
let client = null;
let servers = { parties: [], cluster: "", model: "" };
let keyText = "";
let shown = null; // what the answer's part shows: {outputs, seen, digit, milliseconds} or {error, detail}
let isAsking = false;

const say = () => WORDS[language];

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// -- the drawing ----------------------------------------------------------------------------------

function colours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const long = hex.length === 3 ? [...hex].map((c) => c + c).join("") : hex;
    return [0, 2, 4].map((at) => parseInt(long.slice(at, at + 2), 16));
  };
  return { paper: rgb("--paper"), ink: rgb("--ink"), main: style.getPropertyValue("--main").trim() };
}

function paint() {
  const context = paper.getContext("2d");
  const { paper: ground, ink: dark, main } = colours();
  const image = context.createImageData(SIZE, SIZE);
  for (let i = 0; i < ink.length; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = ground[c] + (dark[c] - ground[c]) * ink[i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  if (brush.isShown) {
    context.strokeStyle = main;
    context.lineWidth = 2;
    context.strokeRect(brush.column * CELL - 2, brush.row * CELL - 2, CELL + 4, CELL + 4);
  }
}

function pointOf(event) {
  const box = paper.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
}

paper.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  paper.setPointerCapture(event.pointerId);
  brush.isShown = false;
  last = pointOf(event);
  dab(ink, ...last);
  paint();
});
paper.addEventListener("pointermove", (event) => {
  if (last === null) return;
  for (const moved of event.getCoalescedEvents?.() ?? [event]) {
    const next = pointOf(moved);
    stroke(ink, last, next);
    last = next;
  }
  paint();
});
for (const end of ["pointerup", "pointercancel"]) paper.addEventListener(end, () => (last = null));

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const middle = ({ column, row }) => [(column + 0.5) * CELL, (row + 0.5) * CELL];

paper.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const before = middle(brush);
  if (event.key in MOVES) {
    const [right, down] = MOVES[event.key];
    brush.column = Math.min(CELLS - 1, Math.max(0, brush.column + right));
    brush.row = Math.min(CELLS - 1, Math.max(0, brush.row + down));
    if (event.shiftKey) stroke(ink, before, middle(brush));
  } else if (event.key === " ") {
    dab(ink, ...before);
  } else if (event.key === "Backspace") {
    dab(ink, ...before, 0);
  } else if (event.key === "Delete") {
    wipe();
  } else if (event.key === "Enter") {
    ask();
  } else {
    return;
  }
  event.preventDefault();
  brush.isShown = true;
  paint();
  if (event.key !== "Delete") sayPlace();
});
paper.addEventListener("blur", () => {
  brush.isShown = false;
  paint();
});

function sayPlace() {
  const [x, y] = middle(brush).map(Math.floor);
  $("place").textContent = say().at(brush.column + 1, brush.row + 1, ink[y * SIZE + x] > 0.5);
}

function wipe() {
  ink = blank();
  paint();
  $("place").textContent = say().wiped;
}

$("clear").addEventListener("click", wipe);

function addSamples() {
  for (let digit = 0; digit < 10; digit++) {
    const button = element("button", String(digit), { type: "button", "data-sample": digit });
    button.addEventListener("click", () => {
      ink = sample(digit);
      paint();
      $("place").textContent = say().sampled(digit);
    });
    $("samples").append(button);
  }
}

// -- asking ---------------------------------------------------------------------------------------

const ERRORS = ["unknown_client", "limit_reached", "not_serving"];

/** Which of the page's own sentences stands for an error. */
function sentenceOf(error) {
  if (ERRORS.includes(error.code)) return error.code;
  return error.name === "ClusterError" && error.message.includes("cannot be reached") ? "unreachable" : "other";
}

/** Where a digit goes in: the shape of a model's only input, if it has 28 x 28 numbers. */
function shapeOf(model) {
  const [input, ...others] = model.inputs;
  const fits = others.length === 0 && input.shape.reduce((a, b) => a * b, 1) === CELLS * CELLS;
  return fits ? [1, ...input.shape] : null;
}

async function ask() {
  if (isAsking) return;
  const digit = digitOf(ink);
  if (client === null) return show({ error: window.isSecureContext ? "noServers" : "insecure" });
  if (digit === null) return show({ error: "empty" });
  isAsking = true;
  $("ask").disabled = true;
  $("result").textContent = say().asking;
  const began = performance.now();
  try {
    const shape = shapeOf(await client.readModel());
    if (shape === null) return show({ error: "unfit" });
    const { outputs, seen } = await client.ask({ data: digit, shape });
    const op = client.model.outputs[0].activation?.op;
    show({ output: outputs[0], isShare: op === "Softmax", seen, digit, milliseconds: performance.now() - began });
  } catch (error) {
    const sentence = sentenceOf(error);
    if (sentence === "unknown_client") $("key-section").hidden = false;
    show({ error: sentence, detail: error.message });
  } finally {
    isAsking = false;
    $("ask").disabled = false;
  }
}

$("ask").addEventListener("click", ask);

function show(what) {
  shown = what;
  render();
  $("result").scrollIntoView({ block: "nearest" });
}

// -- what is shown --------------------------------------------------------------------------------

/** An element of the answer as text: a percentage where a softmax made it. */
function textOf(value) {
  const digits = shown.isShare ? 1 : 3;
  return new Intl.NumberFormat(LANG[language], {
    style: shown.isShare ? "percent" : "decimal",
    maximumFractionDigits: digits,
    minimumFractionDigits: digits,
  }).format(value);
}

function render() {
  const words = say();
  const isBad = shown !== null && "error" in shown;
  $("result").classList.toggle("bad", isBad);
  $("detail").hidden = !isBad || !shown.detail;
  $("saw").hidden = shown === null || isBad;
  $("bars").replaceChildren();
  $("took").textContent = "";
  if (isBad) {
    $("result").textContent = words.errors[shown.error];
    $("detail").textContent = shown.detail ?? "";
    return;
  }
  if (shown === null) {
    $("result").textContent = words.none;
    return;
  }
  const values = [...shown.output.data];
  const best = values.indexOf(Math.max(...values));
  $("result").textContent = words.result(best, textOf(values[best]));
  $("took").textContent = words.took(Math.round(shown.milliseconds), shown.seen.length);
  const least = shown.isShare ? 0 : Math.min(...values);
  const width = (value) => (value - least) / (shown.isShare ? 1 : values[best] - least || 1);
  values.forEach((value, digit) => $("bars").append(bar(digit, value, width(value), digit === best)));
  $("seen").replaceChildren(...shown.seen.map(server), mine());
}

function bar(digit, value, width, isBest) {
  const item = element("li", "", isBest ? { class: "best" } : {});
  const fill = element("span", "", { class: "fill" });
  fill.style.width = `${100 * width}%`;
  const track = element("span", "", { class: "track", "aria-hidden": "true" });
  track.append(fill);
  const label = element("span", say().bar(digit, textOf(value)), { class: "unseen" });
  const parts = [element("span", String(digit), { "aria-hidden": "true" }), track];
  item.append(...parts, element("span", textOf(value), { class: "share", "aria-hidden": "true" }), label);
  return item;
}

const hex = (value) => BigInt.asUintN(64, value).toString(16).padStart(16, "0");

/** What one server saw: its share of the drawing, as points and as numbers, and of the answer. */
function server({ name, address, sent, received }) {
  const words = say();
  const [share] = Object.values(sent);
  const [answer] = Object.values(received);
  const bytes = toBytes(share);
  const box = element("div");
  box.append(
    element("h3", words.server(name, address)),
    picture((i) => bytes[8 * i + 7], words.noise(hex(share[0]))),
    element("p", words.sent(new Intl.NumberFormat(LANG[language]).format(bytes.length)), { class: "small" }),
    element("code", [...share.slice(0, 3)].map(hex).join(" ")),
    element("p", words.received, { class: "small" }),
    element("code", [...answer.slice(0, 2)].map(hex).join(" ")),
  );
  return box;
}

function mine() {
  const box = element("div");
  box.append(element("h3", say().mine), picture((i) => 255 - 255 * shown.digit[i], say().mineLabel));
  return box;
}

/** A picture of 28 x 28 greys. */
function picture(grey, label) {
  const canvas = element("canvas", "", { role: "img", "aria-label": label, width: CELLS, height: CELLS });
  const context = canvas.getContext("2d");
  const image = context.createImageData(CELLS, CELLS);
  for (let i = 0; i < CELLS * CELLS; i++) image.data.set([grey(i), grey(i), grey(i), 255], 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

function translate() {
  const words = say();
  document.documentElement.lang = LANG[language];
  $("place").textContent = "";
  document.title = `${words.title} - privserve`;
  for (const part of document.querySelectorAll("[data-say]")) part.textContent = words[part.dataset.say];
  for (const part of document.querySelectorAll("[data-label]")) part.setAttribute("aria-label", words[part.dataset.label]);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.setAttribute("aria-label", words.sample(button.dataset.sample));
  }
  $("trust").replaceChildren(...words.trustText.map((text) => element("li", text)));
  render();
}

for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    language = button.dataset.language;
    translate();
  });
}

// -- whom to ask ----------------------------------------------------------------------------------

function connect() {
  client = null;
  if (servers.parties.length === 0) return;
  try {
    client = new Client(servers.parties, { key: keyText, cluster: servers.cluster, model: servers.model });
  } catch (error) {
    show({ error: "other", detail: error.message });
  }
}

$("key").addEventListener("change", async () => {
  const [file] = $("key").files;
  keyText = file ? await file.text() : "";
  connect();
});

$("servers-form").addEventListener("submit", (event) => {
  event.preventDefault();
  servers = { parties: $("addresses").value.split(/\s+/).filter(Boolean), cluster: $("cluster").value.trim(), model: "" };
  show(null);
  connect();
});

/** Who the servers are, as whoever serves this page says; a page that was kept as a file asks. */
async function findServers() {
  try {
    if (location.protocol === "file:") throw new Error("a file");
    const answer = await fetch("parties.json", { cache: "no-store" });
    const told = await answer.json();
    if (!answer.ok || !Array.isArray(told.parties)) throw new Error("nobody is named");
    servers = { parties: told.parties.map(String), cluster: String(told.cluster ?? ""), model: String(told.model ?? "") };
    $("key-section").hidden = told.open === true;
  } catch {
    $("servers").hidden = false;
    $("key-section").hidden = false;
    $("module-line").hidden = true;
    $("download").hidden = location.protocol === "file:";
  }
  connect();
}

paper.width = SIZE;
paper.height = SIZE;
addSamples();
translate();
paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
await findServers();
document.documentElement.dataset.ready = "true";
