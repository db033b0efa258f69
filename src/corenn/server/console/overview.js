// The first view: what the server does, and its collections.

import { bytes, h, number, put, recall, short, table, time } from "./dom.js";
import { tile } from "./spark.js";

export const link = (name, view = "query") => `#/${encodeURIComponent(name)}/${view}`;

/** What stands in the place of a figure that is not known. */
const blank = () => h("span", { class: "faint" }, "–");

/** The view of all collections. */
export function overview(live) {
  const figures = h("div", { class: "tiles" });
  const list = h("div", { class: "wide" });
  const made = h("section", {}, h("h1", { class: "unseen" }, "Overview"), figures, h("h2", {}, "Collections"), list);

  function news() {
    figures.hidden = !live.allowed;
    put(figures, tiles(live));
    if (!live.rights) put(list);
    else if (!live.names.length) put(list, h("p", { class: "faint" }, "There is no collection yet, or none that this key may see."));
    else {
      const drawn = h("div", {}, collectionTable(live));
      if (!list.firstChild?.isEqualNode(drawn)) keepingFocus(list, () => put(list, drawn));  // a click is not cut in two
    }
  }
  return { made, news };
}

function tiles(live) {
  const rates = live.rates ?? {};
  return [
    tile("Queries", `${short(rates.queries ?? NaN)} / s`, live.series("queries"), "answered by the engine"),
    tile("Query time", time(rates.median), live.series("median"), Number.isFinite(rates.slow) ? `99 of 100 within ${time(rates.slow)}` : "none in half a minute"),
    tile("Requests", `${short(rates.operations ?? NaN)} / s`, live.series("operations"), "to collections"),
    tile("Refused", `${short(rates.refused ?? NaN)} / s`, live.series("refused"), "429, 500 and above"),
    tile("Memory", bytes(live.server?.resident), live.series("resident"), "resident, of the process"),
    tile("Open", number(live.server?.open), live.series("open"), `of ${number(live.names.length)} collections`),
  ];
}

function collectionTable(live) {
  const rows = live.names.map((name) => {
    const told = live.states[name];
    const seen = live.allowed ? live.server?.collections[name] : told && { ...told.stats, memory: told.memory };
    const cell = (field, form) => (seen?.[field] == null ? blank() : form(seen[field]));
    return [
      h("a", { href: link(name) }, h("bdi", {}, name)), cell("rows", number), cell("pending", number), cell("tombstones", number),
      cell("memory", bytes), cell("disk_bytes", bytes), cell("commit", number), cell("recall", recall), cell("waiting", number),
    ];
  });
  const heads = ["Name", ["Rows", "figure"], ["Unlinked", "figure lesser"], ["Deleted", "figure lesser"], ["Memory", "figure"], ["Disk", "figure"], ["Commit", "figure lesser"], ["recall@10", "figure lesser"], ["Waiting", "figure lesser"]];
  const closed = live.allowed && live.names.some((name) => !live.server?.collections[name]);
  return [table("Collections, and what each tells of itself", heads, rows, { class: "rows" }), closed && h("p", { class: "faint" }, "– a collection that is closed, or has not been measured: to look at it opens it.")];
}

/** Draw anew without taking the focus away from whoever has it. */
export function keepingFocus(place, draw) {
  const held = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  draw();
  if (held) [...place.querySelectorAll("a")].find((each) => each.getAttribute("href") === held)?.focus();
}
