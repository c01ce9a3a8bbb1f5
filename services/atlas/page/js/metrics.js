// A service's numbers over time: from ATLAS's history, and then live.

import { ofService } from "./api.js";

const POINTS = 240;
const LIVE_SPAN_S = 900;
const REFRESH_MS = 15000;

/** Spans to choose from, in seconds. */
export const SPANS = [
  [300, "5 min"],
  [3600, "1 h"],
  [86400, "24 h"],
  [604800, "7 d"],
];

export class Metrics {
  #state;
  #name;
  #samples = [];
  #timer = null;
  #asking = null;
  problem = "";

  constructor(state, name, onChange) {
    this.#state = state;
    this.#name = name;
    this.onChange = onChange;
    this.onSample = () => this.#sample();
    state.addEventListener("sample", this.onSample);
  }

  close() {
    this.#state.removeEventListener("sample", this.onSample);
    clearInterval(this.#timer);
    this.#asking?.abort();
  }

  async show(span) {
    this.span = span;
    this.#samples = [];
    clearInterval(this.#timer);
    if (span > LIVE_SPAN_S) this.#timer = setInterval(() => this.#load(), REFRESH_MS);
    await this.#load();
  }

  async #load() {
    this.#asking?.abort();
    this.#asking = new AbortController();
    const step = Math.max(1, Math.ceil(this.span / POINTS));
    const since = Math.floor(this.#state.now() - this.span);
    try {
      const answer = await ofService(this.#name, "metrics", { since, step }, this.#asking.signal);
      const points = answer.points.map((point) => ({ ...point, end_s: point.time_s + answer.step_s }));
      if (points.at(-1)?.end_s > answer.until_s) points.at(-1).requests = null; // not all of its time has passed
      const newest = points.at(-1)?.time_s ?? 0;
      const live = this.span > LIVE_SPAN_S ? [] : this.#samples.filter((sample) => sample.time_s > newest);
      this.#samples = [...points, ...live];
      this.problem = "";
    } catch (error) {
      if (error.name === "AbortError" || this.#asking.signal.aborted) return;
      this.problem = error.message;
    }
    this.onChange();
  }

  #sample() {
    const row = this.#state.services.get(this.#name);
    if (row === undefined || this.span > LIVE_SPAN_S || this.#state.now() - this.#state.heard() > 3) return;
    this.#samples.push({ ...row, time_s: this.#state.now(), end_s: this.#state.now() });
    this.onChange();
  }

  /** [from, to, {cpu, memory, lag, requests}] as a Chart takes them. */
  series() {
    const to = this.#state.now();
    const from = to - this.span;
    const samples = this.#samples.filter((sample) => sample.time_s >= from);
    const points = (key) => samples.map((sample) => pointOf(sample.time_s, sample[key]));
    return [from, to, { cpu: points("cpu_cores"), memory: points("rss_bytes"), lag: points("loop_lag_s"), requests: rates(samples) }];
  }
}

function pointOf(t, value) {
  if (value === null || value === undefined) return { t, v: null };
  return typeof value === "number" ? { t, v: value } : { t, v: value.avg, low: value.min, high: value.max };
}

/** Of a counter that begins anew with each process; it is told as it was at the end of a point's time. */
function rates(samples) {
  const points = [];
  for (let i = 1; i < samples.length; i += 1) {
    const [before, after] = [samples[i - 1], samples[i]];
    const seconds = after.end_s - before.end_s;
    const answered = after.requests - before.requests;
    const isKnown = before.requests !== null && after.requests !== null;
    const isSame = isKnown && after.incarnation === before.incarnation && answered >= 0;
    if (seconds > 0) points.push({ t: after.time_s, v: isSame ? answered / seconds : null });
  }
  return points;
}
