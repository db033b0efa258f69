// The curve of recall over the time of a query, as it is measured on the rows of the collection.

import * as api from "./api.js";
import { fault, h, labelled, number, put, recall as recallText, s, say, table, time } from "./dom.js";

const HEIGHT = 340, LEFT = 52, RIGHT = 34, TOP = 22, BOTTOM = 44;
const TICKS = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1];
const SURE = 0.9995;  // where 1 stands on a scale of the share that is missed

/** The view in which recall is measured. */
export function recall(live, name) {
  const k = h("input", { name: "k", type: "number", min: 1, max: 10000, value: 10, required: true });
  const samples = h("input", { name: "samples", type: "number", min: 1, max: 10000, value: 1000, required: true });
  const go = h("button", { class: "go", type: "submit" }, "Measure");
  const stop = h("button", { class: "plain", type: "button", hidden: true, onclick: () => working?.abort() }, "Stop waiting");
  const result = h("div", { class: "answer" });
  const form = h("form", { class: "ask line", onsubmit: submit }, labelled("k", k), labelled("Samples", samples), h("p", { class: "row" }, go, stop));
  const note = h("p", { class: "faint" }, "Stored rows are asked for as if they were not stored, and the answers compared with an exact search: it takes the time of so many exact queries. Queries that name no list choose theirs by this curve from then on.");
  const made = h("section", { class: "recall" }, h("h2", { class: "unseen" }, "Recall"), form, note, result);
  const resized = new ResizeObserver(() => curve && draw());
  let working = null, curve = null, drawnAt = 0;

  async function submit(event) {
    event.preventDefault();
    working?.abort();
    const mine = (working = new AbortController());
    [go.disabled, stop.hidden] = [true, false];
    put(result, h("p", { class: "faint working" }, "Measuring…"));
    try {
      const asked = { k: Number(k.value), samples: Number(samples.value) };
      curve = (await api.ask(name, "recall_curve", asked, { signal: mine.signal })).curve;
      drawnAt = 0;
      draw();
      say(curve.length ? `Recall from ${recallText(curve[0].recall)} to ${recallText(curve.at(-1).recall)}` : "Every query scans all rows");
    } catch (error) {
      put(result, error.name === "AbortError" ? h("p", { class: "faint" }, "The server may go on for a while; nobody waits for it any more.") : fault(error));
    } finally {
      if (working === mine) [go.disabled, stop.hidden] = [false, true];
    }
  }

  function draw() {
    if (!curve.length) return void put(result, h("p", {}, "Queries scan all rows: nothing is missed, and there is no curve. Walks begin with a thousand rows."));
    const width = Math.max(280, Math.min(900, made.clientWidth));
    if (width === drawnAt) return;
    drawnAt = width;
    put(result, drawCurve(curve, live.states[name]?.settings.recall_target, width), points(curve));
  }

  return { made, news() {}, arrive: () => resized.observe(made), leave() { resized.disconnect(); working?.abort(); } };
}

/** Where a recall stands between 0 and 1: by the logarithm of the share that is missed. */
const height = (value) => -Math.log10(1 - Math.min(value, SURE));

function drawCurve(curve, target, width) {
  const times = curve.map((point) => point.seconds * 1000);
  const [first, last] = [Math.min(...times) * 0.88, Math.max(...times) * 1.14];
  const lowest = Math.min(...curve.map((point) => point.low), target ?? 1);
  const floor = TICKS.filter((tick) => tick <= lowest).at(-1) ?? 0;
  const x = (ms) => LEFT + (Math.log(ms / first) / Math.log(last / first)) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((height(value) - height(floor)) / (height(1) - height(floor))) * (HEIGHT - TOP - BOTTOM);
  const tip = s("text", { class: "tip", x: LEFT + 8, y: TOP + 4 });
  const told = (point) => `List ${number(point.search_list)}: recall ${recallText(point.recall)} (${recallText(point.low)} to ${recallText(point.high)}), ${time(point.seconds)}, ${number(point.distances)} distances`;
  const show = (point) => () => { tip.textContent = told(point); };
  const ticks = TICKS.filter((tick) => tick >= floor);
  return h("figure", { class: "curve" },
    h("figcaption", {}, h("b", {}, `recall@${curve[0].k}`), " over the time of one query on one thread; labels are search lists, bars 95 % intervals"),
    s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "group", "aria-label": "Curve of recall over time" },
      spaced(ticks.map((tick) => [tick, y(tick)])).map(([tick, at]) => [s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }), s("text", { class: "tick end", x: LEFT - 8, y: at + 4 }, tick)]),
      timeTicks(first, last, width).map((ms) => [s("line", { class: "grid", x1: x(ms), x2: x(ms), y1: TOP, y2: HEIGHT - BOTTOM }), s("text", { class: "tick", x: x(ms), y: HEIGHT - BOTTOM + 17 }, ms)]),
      s("text", { class: "tick", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6 }, "milliseconds"),
      target && target > floor && [s("line", { class: "target", x1: LEFT, x2: width - RIGHT, y1: y(target), y2: y(target) }), s("text", { class: "tick end target", x: width - RIGHT - 4, y: y(target) - 5 }, `target ${target}`)],
      s("polyline", { class: "line", points: best(curve).map((point) => `${x(point.seconds * 1000)},${y(point.recall)}`).join(" ") }),
      curve.map((point, at) => s("g", { class: "point", tabindex: 0, role: "img", "aria-label": told(point), onfocus: show(point), onpointerenter: show(point) },
        s("line", { x1: x(times[at]), x2: x(times[at]), y1: y(point.low), y2: y(point.high) }),
        s("circle", { cx: x(times[at]), cy: y(point.recall), r: 4 }),
        s("circle", { class: "reach", cx: x(times[at]), cy: y(point.recall), r: 13 }))),
      labels(curve, times, x, y).map(([point, left, top]) => s("text", { class: "label", x: left, y: top }, number(point.search_list))),
      tip));
}

/** The points that no other beats in both, by time: what is measured on a busy machine is uneven. */
function best(curve) {
  const kept = [];
  for (const point of curve.toSorted((a, b) => a.seconds - b.seconds || b.recall - a.recall)) if (!kept.length || point.recall > kept.at(-1).recall) kept.push(point);
  return kept;
}

/** Those of ascending ticks that do not touch the one below. */
function spaced(ticks) {
  const kept = [];
  for (const tick of [...ticks].reverse()) if (!kept.length || tick[1] - kept.at(-1)[1] > 15) kept.push(tick);
  return kept;
}

/** Lists beside points, as far as there is room. */
function labels(curve, times, x, y) {
  const placed = [];
  curve.forEach((point, at) => {
    const [left, top] = [x(times[at]) + 7, y(point.recall) + 15];
    if (!placed.some(([, otherLeft, otherTop]) => Math.abs(otherLeft - left) < 30 && Math.abs(otherTop - top) < 13)) placed.push([point, left, top]);
  });
  return placed;
}

/** Round milliseconds between two, as many as there is room for. */
function timeTicks(first, last, width) {
  const round = (digits) => {
    const all = [];
    for (let power = -4; power < 6; power++) for (const digit of digits) all.push(Number((digit * 10 ** power).toPrecision(2)));
    return all.filter((ms) => ms >= first && ms <= last);
  };
  const inside = [[1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map(round).find((ticks) => ticks.length > 2) ?? round([1, 1.2, 1.5, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]);
  const apart = Math.ceil(inside.length / Math.max(2, Math.floor(width / 70)));
  return inside.filter((_, at) => at % apart === 0);
}

function points(curve) {
  const rows = curve.map((point) => [number(point.search_list), recallText(point.recall), `${recallText(point.low)} – ${recallText(point.high)}`, number(point.distances), time(point.seconds)]);
  return table("Points of the curve", [["Search list", "figure"], ["Recall", "figure"], ["95 % interval", "figure lesser"], ["Distances", "figure"], ["Time", "figure"]], rows, { class: "rows" });
}
