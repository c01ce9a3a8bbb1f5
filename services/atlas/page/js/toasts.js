// Outcomes, at the foot of the page: read out politely, and kept while they are bad.

import { byId, el, glyph, setText } from "./dom.js";

const GOOD_MS = 6000;

export class Toast {
  #element;
  #text;
  #sign;

  constructor(text) {
    this.#sign = el("span", { class: "sign" }, glyph("changing"));
    this.#text = el("p", { text });
    const close = el("button", { class: "quiet", type: "button", text: "Dismiss", onclick: () => this.close() });
    this.#element = el("div", { class: "toast is-changing" }, this.#sign, this.#text, close);
    byId("toasts").append(this.#element);
  }

  say(text) {
    setText(this.#text, text);
  }

  /** Over: a good end goes away by itself, a bad one waits to be seen. */
  end(text, isGood) {
    this.say(text);
    this.#element.className = `toast ${isGood ? "is-done" : "is-failing"}`;
    this.#sign.replaceChildren(glyph(isGood ? "done" : "failing"));
    if (isGood) setTimeout(() => this.close(), GOOD_MS);
  }

  close() {
    this.#element.remove();
  }
}
