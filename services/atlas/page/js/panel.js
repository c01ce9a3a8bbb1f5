// What the panels of a service have in common: a place, something to load, and words when that fails.

import { el } from "./dom.js";

export class Panel {
  constructor(state, name) {
    this.state = state;
    this.name = name;
    this.element = el("div", { class: "panel" });
    this.stopping = new AbortController();
  }

  get signal() {
    return this.stopping.signal;
  }

  close() {
    this.stopping.abort();
  }

  /** Call back every so often, until the panel is closed; not while nobody looks. */
  every(ms, callback) {
    const timer = setInterval(() => document.hidden || callback(), ms);
    this.signal.addEventListener("abort", () => clearInterval(timer));
  }

  listen(target, name, callback) {
    target.addEventListener(name, callback, { signal: this.signal });
  }

  /** What the promise gives, or null when the panel says what went wrong. */
  async loaded(promise) {
    try {
      return await promise;
    } catch (error) {
      if (!this.signal.aborted) this.element.replaceChildren(el("p", { class: "hint", text: `Cannot show this: ${error.message}` }));
      return null;
    }
  }
}

/** A list of facts; those without a value are left out. */
export function facts(pairs) {
  const list = el("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(el("div", {}, el("dt", { text: name }), el("dd", {}, value instanceof Node ? value : String(value))));
  }
  return list;
}

/** A table of text, or of nodes; `empty` when there are no rows. */
export function table(heads, rows, empty) {
  if (!rows.length) return el("p", { class: "hint", text: empty });
  const cells = (row) => row.map((value, index) => el("td", { "data-label": heads[index] }, value instanceof Node ? value : String(value ?? "")));
  return el(
    "div",
    { class: heads.length <= 3 ? "scroll short" : "scroll" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col", text: head })))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row)))),
    ),
  );
}

export function block(title, text) {
  return text ? el("section", { class: "block" }, el("h3", { text: title }), el("pre", { tabindex: "0", text })) : null;
}
