// A query by key, vector or text, with a filter: its hits, and how it was answered.

import * as api from "./api.js";
import { clipped, fault, h, hinted, keyText, labelled, number, payload, put, say, table, time, typedKey } from "./dom.js";
import { link } from "./overview.js";
import { drawPlan } from "./plan.js";

/** The view of one collection in which it is asked. given: a key that is asked for at once. */
export function query(live, name, given) {
  const textFields = () => live.states[name]?.settings.text_fields ?? [];
  const key = h("input", { name: "key", autocomplete: "off", spellcheck: "false", placeholder: "key of a row" });
  const vector = h("textarea", { name: "vector", rows: 3, spellcheck: "false", placeholder: "0.12, -0.5, …" });
  const text = h("input", { name: "text", autocomplete: "off", placeholder: 'words, "a phrase"' });
  const filter = h("textarea", { name: "filter", rows: 2, spellcheck: "false", placeholder: '{"year": {"$gte": 2020}}' });
  const k = h("input", { name: "k", type: "number", min: 1, max: 2000, value: 10, required: true });
  const recall = h("input", { name: "min_recall", type: "number", min: 0.01, max: 1, step: "any", placeholder: "auto" });
  const list = h("input", { name: "search_list", type: "number", min: 1, placeholder: "auto" });
  const exact = h("input", { name: "exact", type: "checkbox" });
  const counted = h("span", {});
  const byText = labelled("Text", text);
  const byKey = hinted("Key", key, "Digits are a number; the text of digits is quoted, as \"7\".");
  const byVector = hinted("Vector", vector, counted);
  const answer = h("div", { class: "answer", "aria-live": "polite" });
  const kinds = ["key", "vector"].map((kind) => h("label", {}, h("input", { type: "radio", name: "by", value: kind, checked: kind === "key", onchange: choose }), kind === "key" ? "Key" : "Vector"));
  const go = h("button", { class: "go", type: "submit" }, "Query");
  const form = h("form", { class: "ask", onsubmit: submit, onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(); } },
    h("fieldset", { class: "kinds" }, h("legend", {}, "Nearest to"), h("div", { class: "switch" }, kinds), h("button", { type: "button", class: "plain", onclick: anyRow }, "Any row")),
    byKey, byVector, byText, labelled("Filter", filter),
    h("div", { class: "options" }, labelled("k", k), labelled("Recall", recall), labelled("Search list", list), h("label", { class: "control check" }, exact, h("span", {}, "Exact"))),
    h("p", { class: "row" }, go, h("kbd", {}, "Ctrl"), h("kbd", {}, "Enter")));
  const made = h("section", { class: "query" }, h("h2", { class: "unseen" }, "Query"), form, answer);
  let asking = null;

  vector.addEventListener("input", () => {
    const { numbers } = typedVector(vector.value);
    const dim = live.states[name]?.settings.dim;
    counted.textContent = vector.value.trim() ? `${number(numbers.length)} of ${number(dim)} numbers` : "";
  });

  function choose() {
    const kind = form.elements.by.value;
    byKey.hidden = kind !== "key";
    byVector.hidden = kind !== "vector";
  }

  async function anyRow() {
    try {
      const { records } = await api.ask(name, "sample", { size: 50, filter: typedFilter(filter.value) });
      if (!records.length) return void put(answer, h("p", { class: "faint" }, "There is no such row."));
      show(records[Math.floor(Math.random() * records.length)].key);
    } catch (error) {
      put(answer, fault(error));
    }
  }

  /** Ask for the neighbours of a key. */
  function show(wanted) {
    form.elements.by.value = "key";
    choose();
    key.value = keyText(wanted);
    form.requestSubmit();
  }

  function typed() {
    const asked = { k: Number(k.value), with_payloads: true, explain: true };
    if (form.elements.by.value === "vector") {
      const { numbers, wrong } = typedVector(vector.value);
      if (wrong) throw new Error(`the vector has ${JSON.stringify(clipped(wrong, 20))}, which is no number`);
      if (numbers.length) asked.vector = numbers;
    } else if (key.value !== "") asked.key = typedKey(key.value);
    if (text.value.trim() && textFields().length) asked.text = text.value;
    if (asked.key == null && !asked.vector && asked.text == null) throw new Error("give a key, a vector or a text; or take any row");
    const wanted = typedFilter(filter.value);
    if (wanted) asked.filter = wanted;
    if (recall.value) asked.min_recall = Number(recall.value);
    if (list.value) asked.search_list = Number(list.value);
    if (exact.checked) asked.exact = true;
    return asked;
  }

  async function submit(event) {
    event.preventDefault();
    asking?.abort();
    const mine = (asking = new AbortController());
    try {
      const asked = typed();
      answer.classList.add("waiting");
      const began = performance.now();
      const { results } = await api.ask(name, "query", asked, { signal: mine.signal });
      const took = (performance.now() - began) / 1000;
      put(answer, drawn(asked, results[0], took));
    } catch (error) {
      if (error.name !== "AbortError") put(answer, fault(error));
    } finally {
      if (asking === mine) answer.classList.remove("waiting");
    }
  }

  function drawn(asked, found, took) {
    const scored = asked.text != null;
    const most = Math.max(...found.distances.map(Math.abs).filter(Number.isFinite), 1e-30);
    const rows = found.keys.map((each, at) => [
      String(at + 1),
      h("a", { href: `${link(name)}/${encodeURIComponent(keyText(each))}`, title: "its neighbours" }, h("bdi", {}, clipped(keyText(each), 120))),
      distance(found.distances[at], most, scored),
      payload(found.payloads?.[at]),
    ]);
    const count = `${number(found.keys.length)} ${found.keys.length === 1 ? "hit" : "hits"}`;
    say(`${count} in ${time(took)}`);
    const hits = rows.length
      ? table("Hits, nearest first", [["#", "rank"], ["Key", "key"], [scored ? "Score" : "Distance", "figure distance"], ["Payload", "payload"]], rows, { class: "rows hits" })
      : h("p", { class: "faint" }, "No row meets this.");
    return [
      h("div", { class: "hits" }, h("p", { class: "sum" }, h("b", {}, count), ` in ${time(took)}, there and back`), hits),
      found.explain && drawPlan(found.explain, asked, live.states[name]?.stats.rows ?? found.explain.matches, found.keys.length),
    ];
  }

  function news() {
    byText.hidden = !textFields().length;
  }

  choose();
  news();
  if (given != null) queueMicrotask(() => show(typedKey(given)));
  return { made, news, leave: () => asking?.abort() };
}

function distance(value, most, scored) {
  if (value == null) return "∞";
  const shown = scored ? -value : value;
  const bar = h("i", { class: "measure" });
  bar.style.setProperty("--share", String(Math.abs(value) / most));
  return [Number(shown.toPrecision(5)).toString(), bar];
}

/** The numbers of a text, whatever stands between them, and the first word that is none. */
function typedVector(text) {
  const words = text.replace(/[[\]]/g, " ").split(/[\s,;]+/).filter(Boolean);
  return { numbers: words.map(Number), wrong: words.find((word) => !Number.isFinite(Number(word))) };
}

/** A filter, or null for none. */
export function typedFilter(text) {
  if (!text.trim()) return null;
  let found;
  try {
    found = api.parse(text);
  } catch (error) {
    throw new Error(`the filter is no JSON: ${error.message}`);
  }
  if (typeof found !== "object" || found === null || Array.isArray(found)) throw new Error('the filter is no object; write one such as {"year": 2024}');
  return found;
}
