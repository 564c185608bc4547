/** The drawing: ink on a square, brushed by hand, by keys or by a sample's strokes; and 28 x 28 of it. */

export const CELLS = 28;
export const CELL = 8;
export const SIZE = CELLS * CELL;
const RADIUS = 10; // of the brush; a digit as tall as the square has MNIST's strokes then
const BOX = 20; // of the 28: what MNIST's digits fill
const LEAST = 40; // a smaller drawing is not blown up further

/** No ink: Float32Array of SIZE x SIZE, 0 to 1. */
export function blank() {
  return new Float32Array(SIZE * SIZE);
}

/** Put the brush down at (x, y), in pixels of the ink; amount 0 wipes. */
export function dab(ink, x, y, amount = 1) {
  const reach = RADIUS + 1;
  for (let row = Math.max(0, Math.floor(y - reach)); row <= Math.min(SIZE - 1, Math.ceil(y + reach)); row++) {
    for (let column = Math.max(0, Math.floor(x - reach)); column <= Math.min(SIZE - 1, Math.ceil(x + reach)); column++) {
      const cover = Math.min(1, Math.max(0, RADIUS + 0.5 - Math.hypot(column + 0.5 - x, row + 0.5 - y)));
      const at = row * SIZE + column;
      ink[at] = amount ? Math.max(ink[at], cover) : Math.min(ink[at], 1 - cover);
    }
  }
}

/** Draw from one point to another. */
export function stroke(ink, [x0, y0], [x1, y1]) {
  const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / (RADIUS / 3)));
  for (let step = 0; step <= steps; step++) {
    dab(ink, x0 + ((x1 - x0) * step) / steps, y0 + ((y1 - y0) * step) / steps);
  }
}

/** The ink as MNIST has its digits: Float32Array of 28 x 28, 0 to 1, 20 wide or tall, centred by mass; null for none. */
export function digitOf(ink) {
  let [left, right, top, bottom] = [SIZE, -1, SIZE, -1];
  let [mass, middleX, middleY] = [0, 0, 0];
  for (let row = 0; row < SIZE; row++) {
    for (let column = 0; column < SIZE; column++) {
      const value = ink[row * SIZE + column];
      if (value < 0.05) continue;
      left = Math.min(left, column);
      right = Math.max(right, column);
      top = Math.min(top, row);
      bottom = Math.max(bottom, row);
      mass += value;
      middleX += value * (column + 0.5);
      middleY += value * (row + 0.5);
    }
  }
  if (right < 0) return null;
  const step = Math.max(LEAST, right - left + 1, bottom - top + 1) / BOX; // of ink's pixels to one of the 28
  const digit = new Float32Array(CELLS * CELLS);
  for (let row = 0; row < CELLS; row++) {
    for (let column = 0; column < CELLS; column++) {
      const x = middleX / mass + (column - CELLS / 2 - 0.5) * step;
      const y = middleY / mass + (row - CELLS / 2 - 0.5) * step;
      digit[row * CELLS + column] = average(ink, x, y, step);
    }
  }
  return digit;
}

/** The mean of the ink in the square at (x, y) of this width; nothing lies beyond the edges. */
function average(ink, x, y, width) {
  const parts = Math.max(2, Math.ceil(width));
  let sum = 0;
  for (let i = 0; i < parts; i++) {
    for (let j = 0; j < parts; j++) {
      const row = Math.floor(y + ((i + 0.5) * width) / parts);
      const column = Math.floor(x + ((j + 0.5) * width) / parts);
      if (row >= 0 && row < SIZE && column >= 0 && column < SIZE) sum += ink[row * SIZE + column];
    }
  }
  return Math.min(1, sum / (parts * parts));
}

function arc(cx, cy, rx, ry, from, to) {
  const points = [];
  for (let i = 0; i <= 24; i++) {
    const angle = ((from + ((to - from) * i) / 24) * Math.PI) / 180;
    points.push([cx + rx * Math.cos(angle), cy + ry * Math.sin(angle)]);
  }
  return points;
}

/** The strokes of each digit, in the unit square. */
const SAMPLES = [
  [arc(0.5, 0.5, 0.22, 0.36, -90, 270)],
  [[[0.53, 0.14], [0.48, 0.86]]],
  [[...arc(0.48, 0.32, 0.2, 0.18, -170, 30), [0.28, 0.84], [0.74, 0.82]]],
  [[...arc(0.46, 0.32, 0.2, 0.17, -150, 90), ...arc(0.46, 0.67, 0.23, 0.18, -90, 150)]],
  [[[0.32, 0.16], [0.27, 0.52], [0.72, 0.48]], [[0.68, 0.16], [0.6, 0.88]]],
  [[[0.7, 0.15], [0.38, 0.17], [0.33, 0.46], ...arc(0.46, 0.64, 0.23, 0.21, -90, 150)]],
  [[...arc(0.74, 0.66, 0.42, 0.52, -105, -180), ...arc(0.5, 0.68, 0.19, 0.18, 180, 540)]],
  [[[0.27, 0.17], [0.72, 0.17], [0.44, 0.87]]],
  [arc(0.5, 0.31, 0.17, 0.16, 90, 450), arc(0.5, 0.67, 0.2, 0.2, -90, 270)],
  [[...arc(0.5, 0.34, 0.19, 0.19, 0, 360), [0.67, 0.52], [0.58, 0.87]]],
];

/** The ink of a sample digit, 0 to 9. */
export function sample(digit) {
  const ink = blank();
  for (const points of SAMPLES[digit]) {
    for (let i = 1; i < points.length; i++) {
      stroke(ink, points[i - 1].map((v) => v * SIZE), points[i].map((v) => v * SIZE));
    }
  }
  return ink;
}
