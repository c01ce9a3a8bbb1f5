// One quantity over time, drawn in SVG: axes, the line, its band where there is one, and a cursor with the value.

import { el, setText, svg } from "./dom.js";
import { clock, tick } from "./format.js";

const HEIGHT = 168;
const LEFT = 62;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;
const GAP_STEPS = 3.5;

/** `format` words a value; `floor` is the least that the scale reaches; `binary` scales are for bytes. */
export class Chart {
  #points = [];
  #limits = [];
  #from = 0;
  #to = 1;
  #width = 0;
  #cursor = null;

  constructor({ title, format, floor, binary = false }) {
    this.format = format;
    this.floor = floor;
    this.binary = binary;
    this.value = el("span", { class: "value" });
    this.when = el("span", { class: "when" });
    this.bounds = el("span", { class: "bounds" });
    this.grid = svg("g", { class: "grid" });
    this.limits = svg("path", { class: "limits" });
    this.band = svg("path", { class: "band" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.rule = svg("path", { class: "rule" });
    this.dot = svg("circle", { class: "dot", r: 3.5 });
    this.plot = svg(
      "svg",
      { class: "plot", height: HEIGHT, tabindex: "0", role: "img", "aria-label": title },
      this.grid, this.band, this.area, this.line, this.limits, this.rule, this.dot,
    );
    this.element = el(
      "figure",
      { class: "chart" },
      el("figcaption", {}, el("h3", { text: title }), this.bounds, this.when, this.value),
      this.plot,
    );
    this.title = title;
    this.plot.addEventListener("pointermove", (event) => this.#point(event));
    this.plot.addEventListener("pointerleave", () => this.#show(null));
    this.plot.addEventListener("blur", () => this.#show(null));
    this.plot.addEventListener("keydown", (event) => this.#onKey(event));
    this.observer = new ResizeObserver(([entry]) => {
      this.#width = Math.round(entry.contentRect.width);
      this.#draw();
    });
    this.observer.observe(this.plot);
  }

  /** Points are {t, v} with v null where nobody knows, and low and high where v stands for several. */
  set(points, from, to) {
    this.#points = points;
    this.#from = from;
    this.#to = to;
    if (this.#cursor !== null && this.#cursor >= points.length) this.#cursor = null;
    this.#draw();
  }

  /** {soft, hard} as the service may use, or null. */
  setLimits(band) {
    const bounds = Object.entries({ soft: band?.soft, hard: band?.hard }).filter(([, v]) => typeof v === "number");
    setText(this.bounds, bounds.map(([name, v]) => `${name} ${this.format(v)}`).join(", "));
    this.#limits = bounds.map(([, v]) => v);
    this.#draw();
  }

  close() {
    this.observer.disconnect();
  }

  #x(t) {
    return LEFT + ((t - this.#from) / (this.#to - this.#from)) * (this.#width - LEFT - RIGHT);
  }

  #draw() {
    if (!this.#width) return;
    const known = this.#points.filter((point) => point.v !== null);
    const most = known.reduce((most, point) => Math.max(most, point.high ?? point.v), this.floor);
    // A limit is on the scale once half of it is used; before, it would only flatten the line.
    const top = Math.max(most, ...this.#limits.filter((v) => v <= 2 * most));
    const step = niceStep(top / 3, this.binary);
    const scale = Math.ceil(top / step - 1e-9) * step;
    this.y = (v) => TOP + (1 - v / scale) * (HEIGHT - TOP - BOTTOM);
    this.plot.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#drawGrid(scale, step);
    const runs = this.#runs();
    const at = (t, v) => `${this.#x(t).toFixed(1)} ${this.y(v).toFixed(1)}`;
    const outline = (run) => `M${run.map((point) => at(point.t, point.v)).join("L")}${run.length === 1 ? "h.1" : ""}`;
    const bottom = this.y(0).toFixed(1);
    const fill = (run) => `${outline(run)}V${bottom}H${this.#x(run[0].t).toFixed(1)}Z`;
    const band = (run) =>
      `M${run.map((point) => at(point.t, point.high)).join("L")}L${run.toReversed().map((point) => at(point.t, point.low)).join("L")}Z`;
    this.line.setAttribute("d", runs.map(outline).join(""));
    this.area.setAttribute("d", runs.map(fill).join(""));
    const drawn = this.#limits.filter((v) => v <= scale);
    this.limits.setAttribute("d", drawn.map((v) => `M${LEFT} ${this.y(v).toFixed(1)}H${this.#width - RIGHT}`).join(""));
    this.band.setAttribute("d", runs.filter((run) => run.every((point) => point.high !== undefined)).map(band).join(""));
    this.#show(this.#cursor);
  }

  #drawGrid(scale, step) {
    const span = this.#to - this.#from;
    const marks = [];
    for (let v = 0; v <= scale + step / 2; v += step) {
      const y = this.y(v).toFixed(1);
      marks.push(svg("path", { d: `M${LEFT} ${y}H${this.#width - RIGHT}` }));
      marks.push(svg("text", { x: LEFT - 8, y, dy: "0.32em", "text-anchor": "end", text: v === 0 ? "0" : this.format(v) }));
    }
    const count = this.#width > 420 ? 4 : 2;
    for (let i = 0; i <= count; i += 1) {
      const t = this.#from + (span * i) / count;
      const anchor = i === 0 ? "start" : i === count ? "end" : "middle";
      marks.push(svg("text", { x: this.#x(t).toFixed(1), y: HEIGHT - 5, "text-anchor": anchor, text: tick(t, span) }));
    }
    this.grid.replaceChildren(...marks);
  }

  /** Stretches without a gap: where nothing was heard there is no line. */
  #runs() {
    const points = this.#points;
    const gaps = points.slice(1).map((point, index) => point.t - points[index].t).toSorted((a, b) => a - b);
    const gap = GAP_STEPS * Math.max(2, gaps[Math.floor(gaps.length / 2)] ?? 2);
    const runs = [];
    let run = [];
    for (const point of points) {
      const isBroken = run.length && point.t - run.at(-1).t > gap;
      if ((point.v === null || isBroken) && run.length) {
        runs.push(run);
        run = [];
      }
      if (point.v !== null) run.push(point);
    }
    if (run.length) runs.push(run);
    return runs;
  }

  #point(event) {
    const box = this.plot.getBoundingClientRect();
    const t = this.#from + ((event.clientX - box.left - LEFT) / (this.#width - LEFT - RIGHT)) * (this.#to - this.#from);
    let best = null;
    this.#points.forEach((point, index) => {
      if (point.v === null) return;
      if (best === null || Math.abs(point.t - t) < Math.abs(this.#points[best].t - t)) best = index;
    });
    this.#show(best);
  }

  #onKey(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !this.#points.length) return;
    event.preventDefault();
    const last = this.#points.length - 1;
    this.#show(Math.min(last, Math.max(0, (this.#cursor ?? last) + moves[event.key])));
  }

  #show(index) {
    this.#cursor = index;
    const latest = this.#points.findLast((point) => point.v !== null);
    const point = index === null ? latest : this.#points[index];
    const words = point && point.v !== null ? this.format(point.v) : "–";
    const range = point?.high !== undefined && index !== null ? ` (${this.format(point.low)} to ${this.format(point.high)})` : "";
    setText(this.value, words + range);
    setText(this.when, index === null || !point ? "" : clock(point.t));
    this.plot.setAttribute("aria-label", `${this.title}: ${words}${index === null ? " now" : ` at ${clock(point?.t)}`}`);
    const isMarked = index !== null && point && point.v !== null;
    this.rule.setAttribute("d", isMarked ? `M${this.#x(point.t).toFixed(1)} ${TOP}V${HEIGHT - BOTTOM}` : "");
    this.dot.toggleAttribute("hidden", !isMarked);
    if (!isMarked) return;
    this.dot.setAttribute("cx", this.#x(point.t).toFixed(1));
    this.dot.setAttribute("cy", this.y(point.v).toFixed(1));
  }
}

/** 1, 2 or 5 times a power of ten; for bytes a power of two. */
export function niceStep(rough, binary = false) {
  if (binary) return 2 ** Math.ceil(Math.log2(rough));
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
}
