// One service in depth.

import { ofService } from "./api.js";
import { Chart } from "./chart.js";
import { confirmCommand } from "./commands.js";
import { el, glyph, setAttribute, setText } from "./dom.js";
import { CommandsPanel, EventsPanel } from "./events.js";
import * as format from "./format.js";
import { IncarnationsPanel } from "./incarnations.js";
import { LogPanel } from "./log.js";
import { LoopPanel } from "./loop.js";
import { Metrics, SPANS } from "./metrics.js";
import { healthWords, oodaWords, reasonWords } from "./row.js";
import { VERBS } from "./verbs.js";

const CHARTS = {
  cpu: { title: "CPU", format: format.cpu, floor: 0.02 },
  memory: { title: "Memory", format: format.bytes, floor: 16 << 20, binary: true },
  lag: { title: "Loop lag", format: format.lag, floor: 0.002 },
  requests: { title: "Requests", format: format.perSecond, floor: 1 },
};
/** The chart's quantity, as limits name it. */
const LIMITED = { cpu: "cpu_cores", memory: "rss_bytes", lag: "loop_lag_s" };
const LIMITS_MS = 10000;
const PANELS = [
  ["incarnations", "Incarnations", IncarnationsPanel],
  ["loop", "Loop", LoopPanel],
  ["events", "Events", EventsPanel],
  ["commands", "Commands", CommandsPanel],
  ["log", "Log", LogPanel],
];

/** Kept while the page is open: what somebody compares across services. */
const chosen = { span: SPANS[0][0], panel: "incarnations" };

export class ServiceView {
  #state;
  #name;
  #verbs = "";
  #panel = null;
  #stopping = new AbortController();

  constructor(state, name) {
    this.#state = state;
    this.#name = name;
    this.#build();
    this.metrics = new Metrics(state, name, () => this.#drawCharts());
    const { signal } = this.#stopping;
    state.addEventListener("news", ({ detail }) => (detail.touched.has(name) || detail.listed) && this.#update(), { signal });
    const timer = setInterval(() => this.#update(), 1000);
    const asking = setInterval(() => this.#askLimits(), LIMITS_MS);
    signal.addEventListener("abort", () => [timer, asking].forEach(clearInterval));
    document.addEventListener("pointerdown", (event) => this.more.contains(event.target) || (this.more.open = false), { signal });
  }

  mount(main) {
    main.replaceChildren(this.element);
    document.title = `${this.#name} · ATLAS`;
    scrollTo(0, 0);
    this.#update();
    this.#showSpan(chosen.span);
    this.#askLimits();
    this.#showPanel(chosen.panel);
    this.heading.focus({ preventScroll: true });
  }

  unmount() {
    this.#stopping.abort();
    this.#panel?.close();
    this.metrics.close();
    Object.values(this.charts).forEach((chart) => chart.close());
  }

  /** Esc: close the menu; true if there was one to close. */
  escape() {
    if (!this.more.open) return false;
    this.more.open = false;
    this.more.firstChild.focus();
    return true;
  }

  #build() {
    this.heading = el("h1", { tabindex: "-1", text: this.#name });
    this.pill = el("span", { class: "pill" });
    this.reason = el("p", { class: "service-reason" });
    this.buttons = el("div", { class: "buttons" });
    this.menu = el("div", { class: "menu-items" });
    this.more = el("details", { class: "menu" }, el("summary", { text: "More" }), this.menu);
    this.values = new Map();
    const strip = el("dl", { class: "strip" });
    for (const name of ["Uptime", "Incarnation", "Restarts", "Process", "Host", "Address", "Phase", "OODA", "In flight"]) {
      const value = el("dd");
      this.values.set(name, value);
      strip.append(el("div", {}, el("dt", { text: name }), value));
    }
    this.charts = Object.fromEntries(Object.entries(CHARTS).map(([key, options]) => [key, new Chart(options)]));
    this.spans = el("div", { class: "segments", role: "group", "aria-label": "Time shown" });
    for (const [span, words] of SPANS) {
      this.spans.append(el("button", { type: "button", text: words, "data-span": span, onclick: () => this.#showSpan(span) }));
    }
    this.noHistory = el("p", { class: "aside" });
    this.tabs = el("div", { class: "tabs", role: "tablist", "aria-label": "More of this service" });
    for (const [key, words] of PANELS) {
      this.tabs.append(
        el("button", { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": "panel", text: words, "data-key": key, onclick: () => this.#showPanel(key) }),
      );
    }
    this.tabs.addEventListener("keydown", (event) => this.#onTabKey(event));
    this.place = el("div", { id: "panel", role: "tabpanel" });
    this.element = el(
      "article",
      { class: "service" },
      el("a", { class: "back", href: "#/", text: "← Fleet" }),
      el("header", { class: "service-head" }, this.heading, this.pill, el("div", { class: "orders" }, this.buttons, this.more)),
      this.reason,
      strip,
      el("div", { class: "charts-bar" }, el("h2", { text: "Over time" }), this.noHistory, this.spans),
      el("div", { class: "charts" }, ...Object.values(this.charts).map((chart) => chart.element)),
      this.tabs,
      this.place,
    );
  }

  #update() {
    const row = this.#state.services.get(this.#name);
    if (row === undefined) {
      this.pill.className = "pill is-unknown";
      this.pill.replaceChildren(glyph("unknown"), "not known to ATLAS");
      this.buttons.replaceChildren();
      this.more.hidden = true;
      return;
    }
    const words = row.category === "stopped" || row.state !== "RUNNING" ? row.state.toLowerCase() : healthWords(row);
    if (this.pill.dataset.is !== `${row.category} ${words}`) {
      this.pill.dataset.is = `${row.category} ${words}`;
      this.pill.className = `pill is-${row.category}`;
      this.pill.replaceChildren(glyph(row.category), words);
    }
    const reason = reasonWords(row);
    setText(this.reason, reason);
    this.reason.hidden = !reason;
    setAttribute(this.reason, "class", `service-reason is-${row.category}`);
    const now = this.#state.now();
    const values = {
      Uptime: row.began_s === null ? "–" : format.duration(now - row.began_s),
      Incarnation: row.incarnation === null ? "–" : `#${row.incarnation}`,
      Restarts: row.restarts ?? "–",
      Process: row.pid ?? "–",
      Host: row.host ?? "–",
      Address: row.address ?? "–",
      Phase: row.phase ?? "–",
      OODA: oodaWords(row),
      "In flight": row.in_flight ?? "–",
    };
    for (const [name, value] of Object.entries(values)) setText(this.values.get(name), String(value));
    this.#offer(row);
  }

  /** The commands that make sense now; rebuilt only if they are others, so that the focus stays. */
  #offer(row) {
    const fitting = VERBS.filter((spec) => spec.when(row));
    const key = fitting.map((spec) => spec.label).join();
    if (key === this.#verbs) return;
    this.#verbs = key;
    const button = (spec) =>
      el("button", {
        type: "button",
        text: spec.label,
        onclick: () => {
          this.more.open = false;
          const current = this.#state.services.get(this.#name);
          if (current) confirmCommand(this.#state, spec, current);
        },
      });
    const focused = document.activeElement?.textContent;
    const had = this.buttons.contains(document.activeElement);
    this.buttons.replaceChildren(...fitting.filter((spec) => spec.first).map(button));
    this.menu.replaceChildren(...fitting.filter((spec) => !spec.first).map(button));
    this.more.hidden = false;
    if (had) ([...this.buttons.children].find((one) => one.textContent === focused) ?? this.buttons.firstChild)?.focus();
  }

  #showSpan(span) {
    chosen.span = span;
    for (const button of this.spans.children) setAttribute(button, "aria-pressed", String(Number(button.dataset.span) === span));
    this.metrics.show(span);
    this.#drawCharts();
  }

  #drawCharts() {
    const [from, to, series] = this.metrics.series();
    for (const [key, points] of Object.entries(series)) this.charts[key].set(points, from, to);
    setText(this.noHistory, this.metrics.problem ? `no history: ${this.metrics.problem}` : "");
  }

  async #askLimits() {
    let limits;
    try {
      limits = (await ofService(this.#name, "", {}, this.#stopping.signal)).status?.limits;
    } catch {
      return; // it is asked again, and the page says by itself that ATLAS does not answer
    }
    for (const [key, quantity] of Object.entries(LIMITED)) this.charts[key].setLimits(limits?.[quantity]);
  }

  #showPanel(key) {
    chosen.panel = key;
    this.#panel?.close();
    const [, , Kind] = PANELS.find(([name]) => name === key);
    this.#panel = new Kind(this.#state, this.#name);
    this.place.replaceChildren(this.#panel.element);
    this.place.setAttribute("aria-labelledby", `tab-${key}`);
    for (const tab of this.tabs.children) {
      const isChosen = tab.dataset.key === key;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
    }
  }

  #onTabKey(event) {
    const tabs = [...this.tabs.children];
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const tab = tabs.at(to % tabs.length);
    tab.focus();
    this.#showPanel(tab.dataset.key);
  }
}
