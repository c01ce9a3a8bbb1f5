// What happened to a service, and what was asked of it.

import { get } from "./api.js";
import { outcomeWords } from "./commands.js";
import { el, glyph } from "./dom.js";
import { clock } from "./format.js";
import { Panel, table } from "./panel.js";

const LIMIT = 200;

export function eventTable(events) {
  const rows = events.toReversed().map((event) => [clock(event.time_s), event.kind, event.text]);
  return table(["Time", "Kind", "What"], rows, "Nothing has happened to it, as far as ATLAS knows.");
}

export function commandTable(commands) {
  const rows = commands.toReversed().map((command) => [
    clock(command.asked_at_s),
    command.verb,
    command.asked_by,
    outcomeCell(command),
    (command.attempts ?? []).join(", "),
  ]);
  return table(["Time", "Command", "Asked by", "Outcome", "Asked"], rows, "Nothing has been asked of it.");
}

function outcomeCell(command) {
  const category = command.kind === null ? "changing" : command.kind === "done" ? "done" : "failing";
  return el("span", { class: `outcome is-${category}` }, glyph(category), outcomeWords(command));
}

/** By id, the later of two; in order of time. */
function merged(older, newer, time) {
  const all = new Map([...older, ...newer].map((one) => [one.id, one]));
  return [...all.values()].sort((a, b) => a[time] - b[time]);
}

export class EventsPanel extends Panel {
  constructor(state, name) {
    super(state, name);
    this.older = [];
    this.#load();
    this.listen(state, "news", ({ detail }) => detail.events.some((event) => event.instance === name) && this.#draw());
  }

  async #load() {
    const answer = await this.loaded(get("events", { service: this.name, limit: LIMIT }, this.signal));
    this.older = answer?.events ?? [];
    this.#draw();
  }

  #draw() {
    const live = this.state.events.filter((event) => event.instance === this.name);
    this.element.replaceChildren(eventTable(merged(this.older, live, "time_s").slice(-LIMIT)));
  }
}

export class CommandsPanel extends Panel {
  constructor(state, name) {
    super(state, name);
    this.older = [];
    this.#load();
    this.listen(state, "news", ({ detail }) => detail.commands.some((command) => command.name === name) && this.#draw());
  }

  async #load() {
    const answer = await this.loaded(get("commands", { service: this.name, limit: LIMIT }, this.signal));
    this.older = answer?.commands ?? [];
    this.#draw();
  }

  #draw() {
    const live = [...this.state.commands.values()].filter((command) => command.name === this.name);
    this.element.replaceChildren(commandTable(merged(this.older, live, "asked_at_s").slice(-LIMIT)));
  }
}
