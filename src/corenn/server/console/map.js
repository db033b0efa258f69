// A sample of the rows on the plane on which they are spread the most, to be walked through.

import * as api from "./api.js";
import { clipped, fault, h, keyText, labelled, number, payload, percent, plain, put, say, table } from "./dom.js";
import { link } from "./overview.js";
import { typedFilter } from "./query.js";

const SIZE = 3.4, REACH = 14;  // pixels: radius of a point, and how near to it counts as on it
const NEIGHBOURS = 10;
const SHADES = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const RAMP = ["--r1", "--r2", "--r3", "--r4", "--r5"];
const MANY = 12;  // numbers of a field from which on they are shaded rather than told apart

/** The view of the map. */
export function map(live, name) {
  const size = h("select", { name: "size" }, [500, 1000, 2000].map((rows) => h("option", { value: rows, selected: rows === 1000 }, number(rows))));
  const filter = h("input", { name: "filter", autocomplete: "off", spellcheck: "false", placeholder: '{"year": {"$gte": 2020}}' });
  const field = h("select", { name: "field", onchange: () => { paint(); draw(); } });
  const canvas = h("canvas", {
    tabindex: 0, role: "application", "aria-label": "Map. Arrow keys go from point to point, Enter shows the neighbours, plus and minus zoom, with shift arrow keys move the map, 0 shows all, Escape lets go.",
  });
  const tip = h("div", { class: "tip", hidden: true });
  const caption = h("p", { class: "faint" });
  const legend = h("div", { class: "legend" });
  const panel = h("aside", { class: "panel", "aria-live": "polite" });
  const zoom = (label, text, act) => h("button", { type: "button", title: label, "aria-label": label, onclick: act }, text);
  const buttons = h("div", { class: "zoom" }, zoom("Closer", "+", () => closer(1.5)), zoom("Farther", "−", () => closer(1 / 1.5)), zoom("All", "⤢", () => { fit(); draw(); }));
  const frame = h("div", { class: "frame" }, canvas, tip, buttons);
  const form = h("form", { class: "ask line", onsubmit: (event) => { event.preventDefault(); load(); } },
    labelled("Rows", size), labelled("Filter", filter), labelled("Colour", field), h("p", { class: "row" }, h("button", { class: "go", type: "submit" }, "Draw")));
  const made = h("section", { class: "map" }, h("h2", { class: "unseen" }, "Map"), form, h("div", { class: "sides" }, h("div", {}, frame, legend, caption), panel));

  let drawn = null, points = [], colours = [], view = { scale: 1, x: 0, y: 0 };
  let over = null, chosen = null, near = [], loading = null, asking = null;
  const resized = new ResizeObserver(() => draw());
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const again = () => { paint(); draw(); };

  async function load() {
    loading?.abort();
    const mine = (loading = new AbortController());
    frame.classList.add("waiting");
    try {
      drawn = await api.ask(name, "map", { size: Number(size.value), filter: typedFilter(filter.value) }, { signal: mine.signal });
      points = drawn.points;
      [over, chosen, near] = [null, null, []];
      choices();
      paint();
      fit();
      tell();
      draw();
      say(`${number(points.length)} of ${number(drawn.rows)} rows on the map`);
    } catch (error) {
      if (error.name !== "AbortError") put(panel, fault(error));
    } finally {
      if (loading === mine) frame.classList.remove("waiting");
    }
  }

  // --- colours ---------------------------------------------------------------------------------------------------------

  function choices() {
    const counts = new Map();
    for (const { payload: fields } of points) for (const [each, value] of Object.entries(fields ?? {})) if (["string", "number", "boolean"].includes(typeof value)) counts.set(each, (counts.get(each) ?? 0) + 1);
    const names = [...counts.keys()].sort().slice(0, 40);
    const before = field.value;
    put(field, h("option", { value: "" }, "none"), names.map((each) => h("option", { value: each, selected: each === before }, clipped(each, 40))));
    if (!before) field.value = telling(names);
  }

  /** The field whose colours tell most: few values, texts before numbers. */
  function telling(names) {
    const text = (each) => points.some((point) => typeof point.payload?.[each] === "string");
    const few = names.filter((each) => distinct(each) > 1 && distinct(each) <= (text(each) ? points.length / 4 : SHADES.length));
    return few.sort((a, b) => text(b) - text(a) || distinct(a) - distinct(b))[0] ?? "";
  }

  const distinct = (each) => new Set(points.map((point) => point.payload?.[each]).filter((value) => value != null)).size;

  function paint() {
    const style = getComputedStyle(canvas);
    const colour = (variable) => style.getPropertyValue(variable).trim();
    const values = points.map((point) => (field.value && point.payload && Object.hasOwn(point.payload, field.value) ? point.payload[field.value] : null));
    const known = values.filter((value) => ["string", "number", "boolean"].includes(typeof value));
    const numeric = known.length && known.every((value) => typeof value === "number") && new Set(known).size > MANY;
    if (!known.length) {
      colours = points.map(() => colour("--accent"));
      put(legend);
    } else if (numeric) shade(values, known, colour);
    else tellApart(values, known, colour);
  }

  function shade(values, known, colour) {
    const sorted = known.toSorted((a, b) => a - b);
    const ends = RAMP.map((_, at) => sorted[Math.floor(((at + 1) * sorted.length) / RAMP.length) - 1] ?? sorted.at(-1));
    const step = (value) => Math.max(0, ends.findIndex((end) => value <= end));
    colours = values.map((value) => (typeof value === "number" ? colour(RAMP[step(value)]) : colour("--faint")));
    put(legend, RAMP.map((variable, at) => swatch(colour(variable), at ? `to ${number(ends[at])}` : `${number(sorted[0])} to ${number(ends[0])}`)));
  }

  function tellApart(values, known, colour) {
    const counts = new Map();
    for (const value of known) counts.set(value, (counts.get(value) ?? 0) + 1);
    const shown = [...counts].sort(([, a], [, b]) => b - a).slice(0, SHADES.length).map(([value]) => value);
    colours = values.map((value) => (shown.includes(value) ? colour(SHADES[shown.indexOf(value)]) : colour("--faint")));
    put(legend, shown.map((value, at) => swatch(colour(SHADES[at]), clipped(plain(value), 32), counts.get(value))), counts.size > shown.length || known.length < values.length ? swatch(colour("--faint"), "others") : null);
  }

  function swatch(colour, text, count) {
    const dot = h("i", { class: "dot" });
    dot.style.background = colour;
    return h("span", {}, dot, h("bdi", {}, text), count && h("span", { class: "faint" }, ` ${number(count)}`));
  }

  // --- drawing ---------------------------------------------------------------------------------------------------------

  /** Where a point of the plane is on the canvas. */
  const at = (point) => [view.x + point.x * view.scale, view.y - point.y * view.scale];

  function fit() {
    const { clientWidth: width, clientHeight: height } = canvas;
    const all = [...points, ...near];
    if (!all.length || !width) return;
    const [xs, ys] = [all.map((point) => point.x), all.map((point) => point.y)];
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = 0.9 * Math.min(width / (right - left || 1e-9), height / (high - low || 1e-9));
    view = { scale: Number.isFinite(scale) && scale < 1e8 ? scale : 1, x: 0, y: 0 };
    view.x = width / 2 - ((left + right) / 2) * view.scale;
    view.y = height / 2 + ((low + high) / 2) * view.scale;
  }

  /** Zoom, so that what lies at (x, y) stays there. */
  function closer(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    view = { scale: view.scale * factor, x: x + (view.x - x) * factor, y: y + (view.y - y) * factor };
    draw();
  }

  function draw() {
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = devicePixelRatio || 1;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
      fit();
    }
    const style = getComputedStyle(canvas);
    const ink = style.getPropertyValue("--ink").trim();
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.globalAlpha = chosen ? 0.3 : 0.8;
    points.forEach((point, each) => dot(pen, at(point), SIZE, colours[each]));
    pen.globalAlpha = 1;
    if (chosen) lines(pen, ink);
    if (over) ring(pen, at(over), SIZE + 3.5, ink, 1.5);
    canvas.dataset.points = points.length;
  }

  function lines(pen, ink) {
    pen.strokeStyle = ink;
    for (const point of near) {
      pen.globalAlpha = 0.45;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(...at(chosen));
      pen.lineTo(...at(point));
      pen.stroke();
      pen.globalAlpha = 1;
      if (point.among != null) dot(pen, at(point), SIZE + 1, colours[point.among]);
      ring(pen, at(point), SIZE + 1, ink, 1.2);
    }
    dot(pen, at(chosen), SIZE + 2, chosen.among != null ? colours[chosen.among] : ink);
    ring(pen, at(chosen), SIZE + 2.5, ink, 2.5);
  }

  function dot(pen, [x, y], radius, colour) {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }

  function ring(pen, [x, y], radius, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.stroke();
  }

  // --- points ----------------------------------------------------------------------------------------------------------

  /** The point that is nearest to a place on the canvas, if it is near. */
  function hit(x, y, reach = REACH) {
    let best = null, least = reach;
    for (const point of [...near, ...points]) {
      const [left, top] = at(point);
      const away = Math.hypot(left - x, top - y);
      if (away < least) [best, least] = [point, away];
    }
    return best;
  }

  /** The next point from `over` in a direction: the nearest, far less those that lie off it. */
  function onward(dx, dy) {
    if (!over) return hit(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity);
    const [x, y] = at(over);
    let best = null, least = Infinity;
    for (const point of points) {
      const [left, top] = at(point);
      const along = (left - x) * dx + (top - y) * dy;
      const cost = along + 2.5 * Math.abs((left - x) * dy - (top - y) * dx);
      if (along > 0.5 && cost < least) [best, least] = [point, cost];
    }
    return best ?? over;
  }

  function hover(point) {
    over = point;
    tip.hidden = !point;
    canvas.dataset.over = point ? keyText(point.key) : "";
    if (point) {
      const [x, y] = at(point);
      put(tip, h("b", {}, h("bdi", {}, clipped(keyText(point.key), 80))), summary(point.payload));
      const room = canvas.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(4, Math.min(x + 14, room))}px`;
      tip.style.top = `${Math.max(4, Math.min(y + 14, canvas.clientHeight - tip.offsetHeight - 8))}px`;
    }
    draw();
  }

  const summary = (fields) => Object.entries(fields ?? {}).slice(0, 6).map(([each, value]) => h("div", {}, h("span", { class: "faint" }, h("bdi", {}, clipped(each, 30))), " ", h("bdi", {}, clipped(plain(value), 90))));

  /** Where a vector lies on the plane. */
  function place(vector) {
    const length = drawn.unit ? Math.hypot(...vector) || 1 : 1;
    const [x, y] = drawn.axes.map((axis) => axis.reduce((sum, part, each) => sum + part * (vector[each] / length - drawn.origin[each]), 0));
    return { x, y };
  }

  async function choose(point) {
    asking?.abort();
    const mine = (asking = new AbortController());
    chosen = { ...point, among: among(point.key) };
    tip.hidden = true;  // the panel tells more, and it would lie over the lines
    near = [];
    draw();
    try {
      const { results: [found] } = await api.ask(name, "query", { key: point.key, k: NEIGHBOURS + 1, with_payloads: true }, { signal: mine.signal });
      const kept = found.keys.map((key, each) => ({ key, distance: found.distances[each], payload: found.payloads[each] })).filter((each) => each.key !== point.key).slice(0, NEIGHBOURS);
      const { records } = await api.ask(name, "get", { keys: kept.map((each) => each.key) }, { signal: mine.signal });
      near = kept.flatMap((each, row) => (records[row] ? [{ ...each, ...place(records[row].vector), among: among(each.key) }] : []));
      show();
      draw();
      say(`${number(near.length)} neighbours of ${keyText(point.key)}; the nearest is ${near.length ? keyText(near[0].key) : "none"}`);
    } catch (error) {
      if (error.name !== "AbortError") put(panel, fault(error));
    }
  }

  function among(key) {
    const found = points.findIndex((point) => point.key === key);
    return found < 0 ? null : found;
  }

  function show() {
    const rows = near.map((each) => [h("button", { class: "link", type: "button", onclick: () => choose(each) }, h("bdi", {}, clipped(keyText(each.key), 80))), number(each.distance)]);
    put(panel, h("h3", {}, h("bdi", {}, clipped(keyText(chosen.key), 120))), payload(chosen.payload),
      table("Neighbours, nearest first", ["Neighbour", ["Distance", "figure"]], rows, { class: "rows" }),
      h("p", {}, h("a", { href: `${link(name)}/${encodeURIComponent(keyText(chosen.key))}` }, "Ask for it in Query")));
    canvas.dataset.near = near.length;
  }

  function release() {
    [chosen, near] = [null, []];
    delete canvas.dataset.near;
    tell();
    hover(null);
  }

  function tell() {
    const dim = drawn.axes[0].length;
    const both = drawn.shares[0] + drawn.shares[1];
    put(caption, `${number(points.length)} of ${number(drawn.rows)} rows, on the two of ${number(dim)} dimensions that hold ${percent(both, 2)} of their variance: what is near in the collection may lie apart here, and lines lead to true neighbours.`);
    put(panel, h("p", { class: "faint" }, points.length ? "Choose a point for its neighbours: a click, or arrow keys and Enter." : "No row meets this."));
  }

  // --- hands -----------------------------------------------------------------------------------------------------------

  const held = new Map();  // pointers that are down, by id
  let moved = 0;
  const inside = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, inside(event));
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = inside(event);
    const before = held.get(event.pointerId);
    if (!before) return void hover(hit(...now));
    const others = [...held].filter(([id]) => id !== event.pointerId).map(([, where]) => where);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    held.set(event.pointerId, now);
    if (others.length) {
      const [other] = others;
      const span = (where) => Math.max(8, Math.hypot(where[0] - other[0], where[1] - other[1]));
      closer(span(now) / span(before), other[0], other[1]);
    } else if (moved > 4) {
      view = { ...view, x: view.x + now[0] - before[0], y: view.y + now[1] - before[1] };
      hover(null);
    }
  });
  const lift = (event) => {
    if (held.delete(event.pointerId) && event.type === "pointerup" && moved <= 4 && !held.size) {
      const point = hit(...inside(event), REACH);
      if (point) choose(point);
      else release();
    }
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => held.size || hover(null));
  canvas.addEventListener("blur", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    closer(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...inside(event));
  }, { passive: false });

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !points.length) return;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) {
      view = { ...view, x: view.x - arrow[0] * 60, y: view.y - arrow[1] * 60 };
      draw();
    } else if (arrow) {
      hover(onward(...arrow));
      intoView();
      say(`${keyText(over.key)}. ${Object.entries(over.payload ?? {}).slice(0, 4).map(([each, value]) => `${each} ${clipped(plain(value), 60)}`).join(", ")}`);
    } else if (event.key === "Enter" && over) choose(over);
    else if (event.key === "+" || event.key === "=") closer(1.3, ...(over ? at(over) : []));
    else if (event.key === "-") closer(1 / 1.3, ...(over ? at(over) : []));
    else if (event.key === "0") { fit(); draw(); } else if (event.key === "Escape") release();
    else return;
    event.preventDefault();
  });

  function intoView() {
    const [x, y] = at(over);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (x > 20 && y > 20 && x < width - 20 && y < height - 20) return;
    view = { ...view, x: view.x + width / 2 - x, y: view.y + height / 2 - y };
    hover(over);
  }

  return {
    made, news() {},
    arrive() {
      resized.observe(canvas);
      scheme.addEventListener("change", again);
      load();
    },
    leave() {
      resized.disconnect();
      scheme.removeEventListener("change", again);
      loading?.abort();
      asking?.abort();
    },
  };
}
