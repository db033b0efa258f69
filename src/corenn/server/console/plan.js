// How a query was answered, drawn from the top down: each bar is as wide as the logarithm of the rows that are left.

import { h, number, recall, s } from "./dom.js";

const WIDTH = 300, STEP = 58, BAR = 25, TOP = 17;

const PLANS = {
  graph: "Walk through the graph", "two-hop": "Walk over matches alone", exact: "Scan of all candidates",
  scan: "Scan of the matches by codes", text: "Ranking by BM25", empty: "Nothing to search",
};

/** The steps of a plan: rows of bars, of which each has a name and a number of rows. */
function steps(explain, asked, rows, found) {
  const made = [[{ name: "rows of the collection", count: rows }]];
  if (asked.filter) made.push([{ name: "match the filter", count: explain.matches, about: true }]);
  const vector = explain.plan !== "text" && explain.plan !== "empty";
  const lanes = [];
  if (vector) lanes.push({ name: "distances", count: explain.distances });
  if (asked.text != null) lanes.push({ name: "have its words", count: explain.text_matches });
  if (lanes.length) made.push(lanes);
  made.push([{ name: found === 1 ? "hit" : "hits", count: found, last: true }]);
  return made;
}

/** The drawing, and the figures below it. */
export function drawPlan(explain, asked, rows, found) {
  const all = steps(explain, asked, rows, found);
  const most = Math.max(2, ...all.flat().map((bar) => bar.count ?? 0));
  const height = TOP + (all.length - 1) * STEP + BAR + 6;
  const places = all.map((bars, row) => bars.map((bar, at) => {
    const lane = WIDTH / bars.length;
    const width = Math.max(3, (lane - 16) * (Math.log1p(bar.count ?? 0) / Math.log1p(most)));
    return { ...bar, middle: lane * (at + 0.5), width, top: TOP + row * STEP };
  }));
  const said = places.map((bars) => bars.map((bar) => `${number(bar.count)} ${bar.name}`).join(" and ")).join(", then ");
  return h("figure", { class: "plan" },
    h("figcaption", {}, h("b", {}, PLANS[explain.plan] ?? explain.plan), explain.fusion ? `, joined with the text by ${explain.fusion}` : ""),
    s("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `${PLANS[explain.plan] ?? explain.plan}: ${said}` },
      places.slice(1).flatMap((bars, row) => flows(places[row], bars)), places.flat().map(drawBar)),
    figures(explain));
}

function flows(above, below) {
  const pairs = above.length === below.length ? above.map((bar, at) => [bar, below[at]]) : above.flatMap((a) => below.map((b) => [a, b]));
  return pairs.map(([a, b]) => {
    const [start, end] = [a.top + BAR, b.top];
    const half = (start + end) / 2;
    const side = (from, to) => `${from} ${start} C ${from} ${half} ${to} ${half} ${to} ${end}`;
    const back = (from, to) => `${to} ${end} C ${to} ${half} ${from} ${half} ${from} ${start}`;
    return s("path", { class: "flow", d: `M ${side(a.middle - a.width / 2, b.middle - b.width / 2)} L ${back(a.middle + a.width / 2, b.middle + b.width / 2)} Z` });
  });
}

function drawBar(bar) {
  return s("g", { class: bar.last ? "bar last" : "bar" },
    s("rect", { x: bar.middle - bar.width / 2, y: bar.top, width: bar.width, height: BAR, rx: 3 }),
    s("text", { x: bar.middle, y: bar.top + BAR / 2 + 4.5, class: "count" }, number(bar.count)),
    s("text", { x: bar.middle, y: bar.top - 5, class: "name" }, bar.name));
}

const CHOSEN = {
  search_list: "as asked", min_recall: "for the recall asked", recall_target: "for the target recall", query_search_list_cap: "by settings",
};

function figures(explain) {
  const shown = [
    explain.search_list && ["Search list", `${number(explain.search_list)} ${CHOSEN[explain.chosen_by] ?? ""}`],
    explain.expected_recall != null && ["Expected recall", `${recall(explain.expected_recall)}${explain.least_recall != null && explain.least_recall < explain.expected_recall ? `, at least ${recall(explain.least_recall)}` : ""}`],
    explain.hops && ["Nodes expanded", number(explain.hops)],
    ["Distances", `${number(explain.distances)}${explain.estimated ? ` (${number(explain.estimated)} expected)` : ""}`],
    explain.pages && ["Pages read", number(explain.pages)],
    explain.matches != null && ["Rows that could match", number(explain.matches)],
    explain.terms?.length && ["Words", explain.terms.join(", ")],
  ].filter(Boolean);
  return h("dl", {}, shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, h("bdi", {}, value))]));
}

