// Settings and stats of a collection, as it is now.

import { bytes, h, number, plain, put, table } from "./dom.js";

const SIZES = /_bytes$|^memory_limit$|^pq_bytes$/;

/** The view of what a collection is and holds. */
export function state(live, name) {
  const made = h("section", { class: "state" });
  let last = "";

  function news() {
    const told = live.states[name];
    if (!told || JSON.stringify(told, simple) === last) return;
    last = JSON.stringify(told, simple);
    const { memory, ...stats } = told.stats;
    put(made, h("h2", { class: "unseen" }, "State"), block("Memory of the rows in use", parts(memory)), block("Stats", pairs(stats)), block("Settings", pairs(told.settings)));
  }
  news();
  return { made, news };
}

const simple = (_, value) => (typeof value === "bigint" ? String(value) : value);
const block = (title, content) => h("div", { class: "block" }, h("h3", {}, title), content);

function pairs(values) {
  const rows = Object.entries(values).map(([name, value]) => [h("code", {}, name), shown(name, value)]);
  return table("Names and values", ["Name", ["Value", "figure"]], rows, { class: "rows pairs" });
}

function shown(name, value) {
  if (value == null || value === "" || value.length === 0 || (value === 0 && name === "memory_limit")) return h("span", { class: "faint" }, "none");
  if (typeof value === "number") return SIZES.test(name) ? h("span", { title: number(value) }, bytes(value)) : number(value);
  return h("bdi", {}, plain(value));
}

function parts(memory) {
  const sorted = Object.entries(memory).filter(([, size]) => size).sort(([, a], [, b]) => b - a);
  const most = sorted[0]?.[1] ?? 1;
  const rows = sorted.map(([name, size]) => {
    const bar = h("i", { class: "measure" });
    bar.style.setProperty("--share", String(size / most));
    return [h("code", {}, name), [bytes(size), bar]];
  });
  return table("Parts of the memory", ["Part", ["Size", "figure"]], rows, { class: "rows pairs" });
}
