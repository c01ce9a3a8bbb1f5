// One service in the fleet's list. Only what is different is touched.

import { el, glyph, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { drawSpark, spark } from "./spark.js";

const CPU_FLOOR = 0.05;
const MEMORY_FLOOR = 4 << 20;

export const COLUMNS = [
  { key: "name", label: "Service", sort: (row) => row.instance },
  { key: "state", label: "State", sort: (row) => row.state },
  { key: "health", label: "Health", sort: null },
  { key: "ooda", label: "OODA", sort: (row) => row.ooda_phase ?? "" },
  { key: "cpu", label: "CPU", number: true, sort: (row) => row.cpu_cores ?? -1 },
  { key: "memory", label: "Memory", number: true, sort: (row) => row.rss_bytes ?? -1 },
  { key: "lag", label: "Loop lag", number: true, sort: (row) => row.loop_lag_s ?? -1 },
  { key: "restarts", label: "Restarts", number: true, sort: (row) => row.restarts ?? -1 },
  { key: "uptime", label: "Uptime", number: true, sort: (row) => -(row.began_s ?? Infinity) },
  { key: "reason", label: "Reason", sort: (row) => row.reason },
];

/** Phase and mode in few words; a loop that acts by itself is the rule and not mentioned. */
export function oodaWords(row) {
  if (!row.ooda_phase) return "–";
  if (row.ooda_mode === "off") return "off";
  return row.ooda_mode === "shadow" ? `${row.ooda_phase}, shadow` : row.ooda_phase;
}

/** Why it is as it is, with what operators have set. */
export function reasonWords(row) {
  const set = [
    row.maintenance && "in maintenance",
    row.enabled === false && "disabled",
    row.shedding && "shedding",
  ].filter(Boolean);
  return [...set, row.reason].filter(Boolean).join("; ");
}

/** Its health while it runs; what does not run has none. */
export function healthWords(row) {
  return row.state === "RUNNING" && row.category !== "unwatched" ? row.health : row.category;
}

export function href(name) {
  return `#/service/${encodeURIComponent(name)}`;
}

export class Row {
  constructor() {
    const cell = (name, ...children) => el("div", { class: name, role: "cell" }, ...children);
    this.link = el("a", { class: "name", tabindex: "-1" });
    this.sign = el("span", { class: "sign" });
    this.word = el("span");
    this.cpu = el("span", { class: "value" });
    this.memory = el("span", { class: "value" });
    this.cpuSpark = spark();
    this.memorySpark = spark();
    this.cells = {
      state: cell("state"),
      ooda: cell("ooda"),
      lag: cell("number lag"),
      restarts: cell("number restarts"),
      uptime: cell("number uptime"),
      reason: cell("reason"),
    };
    const { state, ooda, lag, restarts, uptime, reason } = this.cells;
    this.element = el(
      "div",
      { class: "row", role: "row" },
      el("div", { role: "rowheader", class: "cell-name" }, this.link),
      state,
      cell("health", this.sign, this.word),
      ooda,
      cell("meter cpu", this.cpuSpark, this.cpu),
      cell("meter memory", this.memorySpark, this.memory),
      lag,
      restarts,
      uptime,
      reason,
    );
    this.element.addEventListener("click", (event) => {
      if (event.target !== this.link && !getSelection().toString()) this.link.click();
    });
    this.name = null;
    this.category = null;
  }

  update(row, now) {
    if (this.name !== row.instance) {
      this.name = row.instance;
      setText(this.link, row.instance);
      this.link.setAttribute("href", href(row.instance));
      this.element.dataset.name = row.instance;
    }
    if (this.category !== row.category) {
      this.category = row.category;
      this.element.classList.remove(...[...this.element.classList].filter((name) => name.startsWith("is-")));
      this.element.classList.add(`is-${row.category}`);
      this.sign.replaceChildren(glyph(row.category));
    }
    const reason = reasonWords(row);
    setText(this.word, healthWords(row));
    setText(this.cells.state, row.state.toLowerCase());
    setText(this.cells.ooda, oodaWords(row));
    setText(this.cells.lag, format.lag(row.loop_lag_s));
    setText(this.cells.restarts, row.restarts === null ? "–" : String(row.restarts));
    setText(this.cells.reason, reason);
    setAttribute(this.cells.reason, "title", reason);
    this.element.classList.toggle("has-reason", reason !== "");
    setText(this.cpu, format.cpu(row.cpu_cores));
    setText(this.memory, format.bytes(row.rss_bytes));
    this.age(row, now);
  }

  age(row, now) {
    setText(this.cells.uptime, row.began_s === null ? "–" : format.age(now - row.began_s));
  }

  draw(state) {
    drawSpark(this.cpuSpark, state.cpu.get(this.name).values, CPU_FLOOR);
    drawSpark(this.memorySpark, state.memory.get(this.name).values, MEMORY_FLOOR);
  }

  place(index, top, isLast) {
    setAttribute(this.element, "aria-rowindex", String(index + 2));
    const transform = `translateY(${top}px)`;
    if (this.element.style.transform !== transform) this.element.style.transform = transform;
    this.element.classList.toggle("last", isLast);
  }
}
