// The lives of a service, newest first, and why each ended.

import { ofService } from "./api.js";
import { el, glyph } from "./dom.js";
import { commandTable, eventTable } from "./events.js";
import * as format from "./format.js";
import { block, facts, Panel, table } from "./panel.js";

const LIMIT = 50;
const EVERY_MS = 3000;

export class IncarnationsPanel extends Panel {
  constructor(state, name) {
    super(state, name);
    this.told = "";
    this.#load();
    const matters = (event) => event.instance === name && ["restart", "state", "appeared"].includes(event.kind);
    this.listen(state, "news", ({ detail }) => detail.events.some(matters) && this.#load());
    this.every(EVERY_MS, () => this.#load()); // a post-mortem is gathered a while after the end
  }

  async #load() {
    const answer = await this.loaded(ofService(this.name, "incarnations", { limit: LIMIT }, this.signal));
    const told = JSON.stringify(answer?.incarnations ?? null);
    if (told === this.told) return;
    this.told = told;
    if (answer === null) return;
    const focused = document.activeElement?.closest("details")?.dataset.key;
    const shown = new Map([...this.element.querySelectorAll("details")].map((details) => [details.dataset.key, details]));
    const lives = answer.incarnations.map((life) => {
      const before = shown.get(life.key);
      if (before?.dataset.told === JSON.stringify(life)) return before;
      const details = this.#life(life);
      details.open = before?.open ?? false;
      return details;
    });
    this.element.replaceChildren(
      ...(lives.length ? lives : [el("p", { class: "hint", text: "No end of it is on record." })]),
    );
    lives.find((details) => details.dataset.key === focused)?.firstChild.focus({ preventScroll: true });
  }

  #life(life) {
    const isOver = life.ended_s !== null;
    const category = !isOver ? "healthy" : life.verdict ? "failing" : life.ordered_by || life.wait_status === 0 ? "stopped" : "failing";
    const details = el(
      "details",
      { class: `life is-${category}`, "data-key": life.key, "data-told": JSON.stringify(life) },
      el(
        "summary",
        {},
        el("span", { class: "sign" }, glyph(category)),
        el("b", { text: life.incarnation === null ? `pid ${life.pid ?? "?"}` : `#${life.incarnation}` }),
        el("span", { class: "summary-words", text: isOver ? life.summary || life.end || "ended" : "runs" }),
        el("span", { class: "when", text: isOver ? `${format.clock(life.ended_s)}, lived ${format.duration(life.lived_s)}` : `since ${format.clock(life.started_s)}` }),
      ),
    );
    details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && this.#open(details, life));
    return details;
  }

  async #open(details, life) {
    const body = el("div", { class: "life-body" }, el("p", { class: "hint", text: "Loading…" }));
    details.append(body);
    try {
      const whole = await ofService(this.name, `incarnations/${encodeURIComponent(life.key)}`, {}, this.signal);
      body.replaceChildren(...bundle(whole).filter(Boolean));
    } catch (error) {
      body.replaceChildren(el("p", { class: "hint", text: `Cannot show this: ${error.message}` }));
    }
  }
}

/** All that is known of one life. */
function bundle(life) {
  return [
    facts([
      ["End", life.end],
      ["Verdict", life.verdict],
      ["Limit", life.limit],
      ["Ordered by", life.ordered_by],
      ["Spared before", life.spared],
      ["Guilty frame", life.guilty && el("code", { text: life.guilty })],
      ["Last status", life.last_status],
      ["Started", life.started_s && format.clock(life.started_s)],
      ["Ready after", life.ready_after_s === null || life.ready_after_s === undefined ? "" : format.took(life.ready_after_s)],
      ["Lived", life.lived_s === null ? "" : format.duration(life.lived_s)],
      ["Pid", life.pid],
      ["Host", life.host],
      ["Ends in the last hour", life.ends_last_hour],
      ["Ends in the last day", life.ends_last_day],
      ["What followed", life.follows],
    ]),
    block("Stacks", life.stacks),
    block("End of its log", life.log_tail),
    life.statuses?.length ? section("Last statuses", statusTable(life.statuses)) : null,
    life.events?.length ? section("Events around its end", eventTable(life.events)) : null,
    life.commands?.length ? section("Commands around its end", commandTable(life.commands)) : null,
  ];
}

function section(title, content) {
  return el("section", { class: "block" }, el("h3", { text: title }), content);
}

function statusTable(statuses) {
  const rows = statuses.map((status) => [
    format.clock(status.time_s),
    status.health,
    status.phase,
    format.cpu(status.cpu_cores),
    format.bytes(status.rss_bytes),
    format.lag(status.loop_lag_s),
    format.count(status.in_flight ?? 0),
  ]);
  return table(["Time", "Health", "Phase", "CPU", "Memory", "Loop lag", "In flight"], rows, "");
}
