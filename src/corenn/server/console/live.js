// What the server and its collections are doing, asked for every two seconds while somebody looks.

import * as api from "./api.js";

const EVERY = 2000;
const LATELY = 15;  // moments over which the times of queries are told: half a minute
const KEPT = 90;  // moments of each series: three minutes
const DESCRIBED = 16;  // collections that are described for a key which may not see /metrics

/** The lines of a text for Prometheus: name, labels and value of each. */
export function parseFigures(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const parts = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    found.push({ name: parts[1], labels, value: Number(parts[3]) });
  }
  return found;
}

/** A quantile of a histogram, by its buckets: pairs of upper end and how many lie below it. */
export function quantile(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  let [start, before] = [0, 0];
  for (const [end, below] of buckets) {
    if (below >= share * total) return Number.isFinite(end) ? start + ((end - start) * (share * total - before)) / (below - before || 1) : start;
    [start, before] = [end, below];
  }
  return NaN;
}

const GAUGES = {
  corenn_collection_rows: "rows", corenn_unindexed_vectors: "pending", corenn_tombstones: "tombstones",
  corenn_disk_bytes: "disk_bytes", corenn_mapped_bytes: "mapped_bytes", corenn_reclaimable_bytes: "reclaimable_bytes",
  corenn_commit: "commit", corenn_recall_estimate: "recall",
};

/** The figures of a moment: of the server, and of each open collection. */
function moment(figures) {
  const server = { queries: 0, operations: 0, refused: 0, buckets: new Map(), collections: {} };
  const of = (name) => (server.collections[name] ??= { memory: 0, waiting: 0 });
  for (const { name, labels, value } of figures) {
    if (name in GAUGES) of(labels.collection)[GAUGES[name]] = value;
    else if (name === "corenn_memory_bytes") of(labels.collection).memory += value;
    else if (name === "corenn_queue_depth") of(labels.collection).waiting += value;
    else if (name === "corenn_query_duration_seconds_count") server.queries = value;
    else if (name === "corenn_query_duration_seconds_bucket") server.buckets.set(labels.le === "+Inf" ? Infinity : Number(labels.le), value);
    else if (name === "corenn_open_collections") server.open = value;
    else if (name === "process_resident_memory_bytes") server.resident = value;
    else if (name === "corenn_requests_total") {
      if (labels.endpoint.startsWith("/v1/collections/{name}/")) server.operations += value;
      if (labels.status === "429" || labels.status >= "500") server.refused += value;
    }
  }
  return server;
}

/** Rates since the moment before, and the times of queries since an earlier one. */
function between(earlier, before, now) {
  const seconds = (now.at - before.at) / 1000;
  const rate = (name) => Math.max(0, now[name] - before[name]) / seconds;
  const buckets = [...now.buckets].sort(([a], [b]) => a - b);
  const recent = buckets.map(([end, below]) => [end, below - (earlier.buckets.get(end) ?? 0)]);
  return { queries: rate("queries"), operations: rate("operations"), refused: rate("refused"), median: quantile(recent, 0.5), slow: quantile(recent, 0.99) };
}

/** Asks, keeps what was told, and tells its listeners: "news" for each round. */
export class Live extends EventTarget {
  names = [];
  shown = null;  // the collection that is looked at
  states = {};  // by collection, as GET describes them
  server = null;  // the last moment, null for a key that may not see it
  rates = null;
  rights = null;  // what the key may do
  #moments = [];  // the last ones
  #series = new Map();
  #timer = 0;

  /** Ask at once, and from then on. */
  start() {
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
    this.now();
  }

  /** Ask now. */
  async now() {
    clearTimeout(this.#timer);
    const turn = (this.turn = {});
    try {
      if (!document.hidden) await this.#round();
    } catch (error) {
      if (!(error instanceof api.Fault)) throw error;
      this.fault = error;
    } finally {
      if (turn === this.turn) this.#timer = setTimeout(() => this.now(), EVERY);
    }
    this.dispatchEvent(new Event("news"));
  }

  /** Whether the figures of the whole server may be seen. */
  get allowed() {
    return this.rights != null && this.rights.collections === null;
  }

  /** The values of a series, oldest first. */
  series(name) {
    return this.#series.get(name) ?? [];
  }

  #keep(name, value) {
    const kept = this.series(name);
    this.#series.set(name, [...kept.slice(1 - KEPT), value]);
  }

  async #round() {
    this.rights ??= await api.read("v1/rights");
    this.names = await api.collections();
    await Promise.all([this.#figures(), ...this.#wanted().map((name) => this.#describe(name))]);
    this.fault = null;
  }

  #wanted() {
    const wanted = new Set(this.allowed ? [] : this.names.slice(0, DESCRIBED));
    if (this.shown && this.names.includes(this.shown)) wanted.add(this.shown);
    return [...wanted];
  }

  async #figures() {
    if (!this.allowed) return;
    const now = { ...moment(parseFigures(await api.read("metrics"))), at: performance.now() };
    if (this.server) {
      this.rates = between(this.#moments[0], this.server, now);
      for (const [name, value] of Object.entries(this.rates)) this.#keep(name, value);
    }
    this.server = now;
    this.#moments = [...this.#moments, now].slice(-LATELY);
    this.#keep("resident", now.resident);
    this.#keep("open", now.open);
  }

  async #describe(name) {
    try {
      const found = (this.states[name] = await api.state(name));
      found.memory = Object.entries(found.stats.memory).reduce((sum, [, size]) => sum + size, 0);
      for (const field of ["rows", "pending", "tombstones", "disk_bytes", "commit"]) this.#keep(`${name}/${field}`, found.stats[field]);
      this.#keep(`${name}/memory`, found.memory);
    } catch (error) {
      if (error.status === 0 || error.status === 401) throw error;
      delete this.states[name];
    }
  }
}
