// Elements and numbers. Whatever comes from the server becomes a text node here and nowhere else: no markup is parsed.

const SVG = "http://www.w3.org/2000/svg";

/** An element. attributes: `on…` are listeners; true and false set and leave out; children: elements and texts. */
export const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** The same, of SVG. */
export const s = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return made;
}

/** Put children in the place of those that an element has. */
export const put = (place, ...children) => place.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));

/** Tell it to whoever does not see. */
export const say = (text) => { document.getElementById("said").textContent = text; };

// --- numbers ---------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A number of three significant digits, or whole. */
export function number(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return "∞";
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return whole.format(value);
  return size && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

const scaled = (units, step) => (value) => {
  if (value == null || Number.isNaN(value)) return "–";
  let at = 0;
  while (Math.abs(value) >= step * 0.9995 && at < units.length - 1) [value, at] = [value / step, at + 1];
  return `${at ? Number(value.toPrecision(3)) : whole.format(value)}${units[at]}`;
};
export const bytes = scaled([" B", " kB", " MB", " GB", " TB", " PB"], 1000);
export const short = scaled(["", " k", " M", " G", " T"], 1000);

/** Seconds as milliseconds or seconds. */
export const time = (seconds) => (seconds == null || Number.isNaN(seconds) ? "–" : seconds < 1 ? `${number(seconds * 1000)} ms` : `${number(seconds)} s`);

export const percent = (share, digits = 3) => `${Number((share * 100).toPrecision(digits))} %`;

/** A recall, in as many digits as tell it from 1. */
export const recall = (value) => (value == null ? "–" : value === 1 ? "1" : value.toFixed(value >= 0.9995 ? 4 : 3));

// --- recurring parts -------------------------------------------------------------------------------------------------

/** A key as it is typed: a text that could be taken for a number, or for a quoted text, is quoted. */
export function keyText(key) {
  return typeof key === "string" && /^(-?\d+|".*"|\s.*|.*\s|)$/s.test(key) ? JSON.stringify(key) : String(key);
}

/** What was typed as a key. */
export function typedKey(text) {
  if (/^-?\d+$/.test(text)) return Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text);
  return /^".*"$/s.test(text) ? JSON.parse(text) : text;
}

const LONGEST = 220;

/** A payload: its fields in a line, all of it when it is opened. */
export function payload(value) {
  if (value == null) return h("span", { class: "faint" }, "none");
  const fields = Object.entries(value).map(([name, part]) => {
    const text = plain(part);
    return h("span", { class: "field" }, h("b", {}, h("bdi", {}, clipped(name, 60))), " ", h("bdi", {}, clipped(text, LONGEST)));
  });
  if (!fields.length) return h("span", { class: "faint" }, "{}");
  return h("details", { class: "payload" }, h("summary", {}, fields.slice(0, 12).flatMap((field) => [field, " "])), h("pre", {}, JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${part}` : part), 2)));
}

/** A value of a payload as one line. */
export function plain(value) {
  if (typeof value === "string") return value;
  return typeof value === "bigint" ? String(value) : JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${part}` : part));
}

export const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Something that went wrong, in the words of the server. */
export const fault = (error) => h("p", { class: "fault", role: "alert" }, h("b", {}, error.code ?? "Error"), " ", error.message);

/** A labelled control. */
export const labelled = (label, control) => h("label", { class: "control" }, h("span", {}, label), control);

let hints = 0;

/** The same with a line below that is no part of its name. */
export function hinted(label, control, hint) {
  const id = `hint-${++hints}`;
  control.setAttribute("aria-describedby", id);
  return h("div", { class: "control" }, labelled(label, control), h("small", { id }, hint));
}

/** A table with a caption for whoever does not see. columns: heading, or [heading, class]. rows: lists of cells. */
export function table(caption, columns, rows, attributes = {}) {
  const heads = columns.map((column) => [column].flat());
  return h("table", attributes,
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, at) => h(at ? "td" : "th", { class: heads[at][1], scope: at ? null : "row" }, cell))))));
}
