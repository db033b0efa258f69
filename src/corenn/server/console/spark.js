// A figure, and how it has been lately.

import { h, s } from "./dom.js";

const WIDTH = 120, HEIGHT = 26;
const FEWEST = 20;  // values that fill the width: fewer begin further right

/** A line of the last values, from their least to their most. */
export function spark(values) {
  const known = values.filter(Number.isFinite);
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const made = s("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (known.length < 2) return made;
  const x = (at) => WIDTH - (known.length - 1 - at) * (WIDTH / Math.max(FEWEST, known.length - 1));
  const y = (value) => (most > least ? HEIGHT - 2 - ((value - least) / (most - least)) * (HEIGHT - 4) : HEIGHT - 5);
  const points = known.map((value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  made.append(s("polygon", { points: `${x(0).toFixed(1)},${HEIGHT} ${points} ${WIDTH},${HEIGHT}` }), s("polyline", { points }));
  return made;
}

/** A figure with its name, its line, and a word on it. */
export function tile(name, value, series, note) {
  return h("div", { class: "tile" }, h("span", { class: "name" }, name), h("strong", {}, value), spark(series), h("small", {}, note));
}
