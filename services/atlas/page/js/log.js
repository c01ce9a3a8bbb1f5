// The end of a service's log, followed until the reader scrolls back.

import { ofService } from "./api.js";
import { el, setText } from "./dom.js";
import { Panel } from "./panel.js";

const BYTES = 32768;
const EVERY_MS = 1500;
const NEAR_PX = 24;

export class LogPanel extends Panel {
  constructor(state, name) {
    super(state, name);
    this.text = el("pre", { class: "log", tabindex: "0", role: "region", "aria-label": `Log of ${name}` });
    this.follow = el("input", { type: "checkbox", checked: true });
    this.where = el("span", { class: "where" });
    this.body = [el("div", { class: "panel-bar" }, el("label", {}, this.follow, "Follow"), this.where), this.text];
    this.text.addEventListener("scroll", () => {
      this.follow.checked = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < NEAR_PX;
    });
    this.follow.addEventListener("change", () => this.follow.checked && this.#load());
    this.#load();
    this.every(EVERY_MS, () => this.follow.checked && this.#load());
  }

  async #load() {
    const answer = await this.loaded(ofService(this.name, "log", { bytes: BYTES }, this.signal));
    if (answer === null) return;
    if (!this.text.isConnected) this.element.replaceChildren(...this.body);
    setText(this.where, answer.path ?? "");
    const text = answer.text || "(nothing yet)";
    if (this.text.textContent === text) return;
    this.text.textContent = text;
    if (this.follow.checked) this.text.scrollTop = this.text.scrollHeight;
  }
}
