// The page: which view is shown, what stands above it, and what it says when the server is gone.

import * as api from "./api.js";
import { bytes, h, number, put } from "./dom.js";
import { Live } from "./live.js";
import { map } from "./map.js";
import { keepingFocus, link, overview } from "./overview.js";
import { query } from "./query.js";
import { recall } from "./recall.js";
import { tile } from "./spark.js";
import { state } from "./state.js";

const VIEWS = { query: ["Query", query], map: ["Map", map], recall: ["Recall", recall], state: ["State", state] };
const live = new Live();
const main = document.getElementById("main");
const chooser = document.getElementById("chooser");
const pulse = document.getElementById("pulse");
const alarm = document.getElementById("alarm");
let view = null;

/** What the address asks for: a collection, a view of it, and what the view is given. */
function wanted() {
  const [name, which, given] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  return { name: name || null, which: Object.hasOwn(VIEWS, which ?? "") ? which : "query", given };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  if (location.hash === "#main") return void main.focus();
  const { name, which, given } = wanted();
  view?.leave?.();
  live.shown = name;
  view = name ? collection(name, which, given) : overview(live);
  put(main, view.made);
  document.title = name ? `${name} · ${VIEWS[which][0]} · CoreNN` : "CoreNN";
  view.arrive?.();
  news();
  if (name && !live.states[name]) live.now();
}

/** The view of a collection: its figures, the ways to look at it, and one of them. */
function collection(name, which, given) {
  const about = h("p", { class: "about" });
  const figures = h("div", { class: "tiles" });
  const missing = h("p", { class: "fault", role: "alert", hidden: true }, "There is no collection of this name, or this key may not see it. ", h("a", { href: "#/" }, "All collections"));
  const ways = h("nav", { class: "ways", "aria-label": "Views of the collection" }, Object.entries(VIEWS).map(([each, [title]]) => h("a", { href: link(name, each), "aria-current": each === which ? "page" : null }, title)));
  const inner = VIEWS[which][1](live, name, given);
  const body = h("div", {}, figures, ways, inner.made);
  const made = h("div", { class: "collection" }, h("div", { class: "head" }, h("h1", {}, h("bdi", {}, name)), about), missing, body);

  function refresh() {
    const told = live.states[name];
    missing.hidden = !live.names.length || live.names.includes(name) || live.fault != null;
    body.hidden = !missing.hidden;
    if (told) {
      const { settings, stats } = told;
      about.textContent = [`${number(stats.dim)} dimensions`, stats.metric, stats.dtype, stats.compression_mode !== "none" && `codes ${stats.compression_mode}`, settings.text_fields?.length && `text: ${settings.text_fields.join(", ")}`].filter(Boolean).join(" · ");
    }
    put(figures, tiles(told?.stats ?? {}, told?.memory));
    inner.news();
  }

  /** Figures, or their places while nothing has been told: what lies below does not move. */
  function tiles(stats, memory) {
    const series = (field) => live.series(`${name}/${field}`);
    const waiting = live.server?.collections[name]?.waiting;
    return [
      tile("Rows", number(stats.rows), series("rows"), `${number(stats.free)} free ids`),
      tile("Unlinked", number(stats.pending), series("pending"), "committed, and scanned"),
      tile("Deleted", number(stats.tombstones), series("tombstones"), `${bytes(stats.reclaimable_bytes)} to reclaim`),
      tile("Memory", bytes(memory), series("memory"), stats.memory_limit ? `limit ${bytes(stats.memory_limit)}` : "no limit"),
      tile("Disk", bytes(stats.disk_bytes), series("disk_bytes"), stats.durability ?? ""),
      tile("Commit", number(stats.commit), series("commit"), waiting == null ? `generation ${number(stats.generation)}` : `${number(waiting)} waiting`),
    ];
  }
  return { made, news: refresh, arrive: inner.arrive, leave: inner.leave };
}

/** Show what has been told since. */
function news() {
  const { name } = wanted();
  const names = JSON.stringify(live.names);
  if (chooser.dataset.names !== names) {
    chooser.dataset.names = names;
    put(chooser, h("option", { value: "" }, "all"), live.names.map((each) => h("option", { value: each }, each)));
  }
  chooser.parentElement.hidden = !live.names.length;
  chooser.value = live.names.includes(name) ? name : "";
  if (live.rights) {
    const { writes, collections } = live.rights;
    document.getElementById("rights").textContent = `${writes ? "Reading and writing" : "Reading"} ${collections ? collections.join(", ") : "all collections"}; this page changes no rows.`;
    document.getElementById("metrics").hidden = !live.allowed;
  }
  view?.news();
}

// --- whether the server is there -----------------------------------------------------------------------------------------

let gone = null;

function reached(status) {
  if (status === 0) {
    gone ??= new Date();
    pulse.className = "gone";
    pulse.textContent = "out of reach";
    warn(`The server has not answered since ${gone.toLocaleTimeString("en-GB")}. What you see is as of then; it is asked again every two seconds.`);
  } else if (status === 401) {
    pulse.className = "gone";
    pulse.textContent = "no key";
    warn("The server does not know this key any more. Reload the page to give another.");
  } else {
    gone = null;
    pulse.className = "live";
    pulse.textContent = status === 503 ? "busy" : "live";
    warn("");
  }
}

function warn(text) {
  if (alarm.textContent !== text) alarm.textContent = text;
  alarm.hidden = !text;
}

chooser.addEventListener("change", () => { location.hash = chooser.value ? link(chooser.value, wanted().which) : "#/"; });
addEventListener("hashchange", show);
live.addEventListener("news", () => keepingFocus(main, news));
api.watch(reached);
api.read("healthz").then(({ version }) => { document.getElementById("version").textContent = `CoreNN ${version}`; }, () => {});
show();
live.start();
