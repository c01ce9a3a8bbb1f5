// A service's control loop: what it changed, what came of it, and what it saw last.

import { ofService } from "./api.js";
import { el, glyph } from "./dom.js";
import { duration } from "./format.js";
import { facts, Panel, table } from "./panel.js";

const EVERY_MS = 2000;
const CYCLES_SHOWN = 12;
const SIGNS = { kept: "done", undone: "degraded", failed: "failing", settling: "changing" };

export class LoopPanel extends Panel {
  constructor(state, name) {
    super(state, name);
    this.last = "";
    this.#load();
    this.every(EVERY_MS, () => this.#load());
  }

  async #load() {
    const view = await this.loaded(ofService(this.name, "ooda", {}, this.signal));
    const text = JSON.stringify(view);
    if (text === this.last) return;
    this.last = text;
    if (view === null) return;
    const open = new Set([...this.element.querySelectorAll("details[open]")].map((details) => details.dataset.at));
    this.#draw(view, open);
  }

  #draw(view, open) {
    const now = Math.max(0, ...view.cycles.map((cycle) => cycle.at_s), ...view.actions.map((cycle) => cycle.at_s));
    const ago = (cycle) => (now - cycle.at_s < 1 ? "just now" : `${duration(now - cycle.at_s)} ago`);
    const actions = view.actions.toReversed().map((cycle) => [
      ago(cycle),
      words(cycle.decision),
      amount(cycle.effect?.before),
      amount(cycle.effect?.after),
      verdict(cycle.effect),
    ]);
    const parts = [
      facts([
        ["Mode", view.mode],
        ["Phase", view.phase],
        ["A cycle every", `${view.period_s} s`],
        ["Settles for", `${view.settle_s} s`],
        ["Kept", view.kept],
        ["Undone", view.undone],
        ["Failed", view.failed],
      ]),
      el("h3", { text: "What it changed" }),
      table(["When", "Change", "Cost before", "After", "Verdict"], actions, "It has changed nothing: so far that was the right thing to do."),
      el("h3", { text: "Last cycles" }),
      view.cycles.length ? null : el("p", { class: "hint", text: "It has nothing to observe." }),
      el("div", { class: "cycles" }, ...view.cycles.slice(-CYCLES_SHOWN).toReversed().map((cycle) => cycleOf(cycle, ago(cycle), open))),
    ];
    this.element.replaceChildren(...parts.filter(Boolean));
  }
}

function cycleOf(cycle, when, open) {
  const at = String(cycle.at_s);
  const what = cycle.decision === null ? "nothing to change" : words(cycle.decision);
  return el(
    "details",
    { "data-at": at, open: open.has(at) },
    el("summary", {}, el("span", { text: when }), el("span", { text: what })),
    facts([
      ["Observed", words(cycle.observation)],
      ["Means", words(cycle.picture)],
    ]),
  );
}

function words(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "string" ? value : JSON.stringify(value, null, 1).replace(/\n\s*/g, " ");
}

function amount(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : "–";
}

function verdict(effect) {
  if (!effect) return "";
  const sign = SIGNS[effect.verdict] ?? "unknown";
  const text = [effect.verdict, effect.reason].filter(Boolean).join(": ");
  return el("span", { class: `outcome is-${sign}` }, glyph(sign), text);
}
