// Requests to the server that the page came from. The browser itself keeps the key, and sends it along.

const BIG = `big-${Math.random().toString(36).slice(2)}-`;  // nothing that anybody sends begins so
const NUMBERS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const MARKED = new RegExp(`"${BIG}(-?\\d+)"`, "g");

/** JSON, whose integers beyond 2**53 become BigInt: keys have 64 bits. */
export function parse(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const marked = text.replace(NUMBERS, (part) => (/^-?\d{16,}$/.test(part) && !Number.isSafeInteger(Number(part)) ? `"${BIG}${part}"` : part));
  return JSON.parse(marked, (_, value) => (typeof value === "string" && value.startsWith(BIG) ? BigInt(value.slice(BIG.length)) : value));
}

/** And back. */
export function stringify(value) {
  return JSON.stringify(value, (_, part) => (typeof part === "bigint" ? BIG + part : part)).replace(MARKED, "$1");
}

/** What the server has refused or failed at, or that it is out of reach: status 0. */
export class Fault extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let watcher = () => {};

/** Be told of each answer: whether the server could be reached, and the status. */
export function watch(told) { watcher = told; }

/** The answer to a request, parsed if it is JSON. */
async function send(path, options) {
  let answer, text;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    watcher(0);
    throw new Fault(0, "Out of reach", "the server does not answer");
  }
  watcher(answer.status);
  const json = (answer.headers.get("content-type") ?? "").startsWith("application/json");
  if (answer.ok) return json ? parse(text) : text;
  const told = json ? JSON.parse(text).error : null;
  throw new Fault(answer.status, told?.code ?? String(answer.status), told?.message ?? "the server has refused this");
}

const at = (name, operation) => `v1/collections/${encodeURIComponent(name)}${operation ? `/${operation}` : ""}`;

export const read = (path) => send(path, {});
export const collections = async () => (await read("v1/collections")).collections;
export const state = (name) => read(at(name));

/** An operation on a collection. seconds: that it may take, if less than the server allows. */
export function ask(name, operation, body, { signal, seconds } = {}) {
  const headers = { "content-type": "application/json" };
  if (seconds) headers["corenn-timeout"] = String(seconds);
  return send(at(name, operation), { method: "POST", headers, body: stringify(body), signal });
}
