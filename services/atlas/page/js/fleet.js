// The fleet at a glance. Of a thousand services, only the rows in sight are in the document.

import { confirmForAll } from "./commands.js";
import { el, glyph, setAttribute, setText } from "./dom.js";
import { plural } from "./format.js";
import { filterOf, ordered } from "./order.js";
import { prefill } from "./prefill.js";
import { COLUMNS, Row } from "./row.js";
import { CATEGORIES } from "./state.js";
import { ROLLING } from "./verbs.js";

const SPARE_ROWS = 6;
const RESORT_MS = 2000;
const SPARED_ROWS = 60;
const TOGETHER_MOST = 1000;

export class FleetView {
  #state;
  #names = [];
  #shown = new Map();
  #spare = [];
  #touched = new Set();
  #sort = { key: "health", descending: false };
  #categories = new Set();
  #focus = null;
  #rowHeight = 44;
  #frame = null;
  #mustList = true;
  #listedAt = 0;
  #scrollTop = 0;
  #mounted = false;

  constructor(state) {
    this.#state = state;
    this.#build();
    state.addEventListener("news", (news) => this.#onNews(news.detail));
    state.addEventListener("sample", () => this.#mounted && this.#drawSparks());
    setInterval(() => this.#mounted && this.#age(), 1000);
    window.addEventListener("scroll", () => this.#mounted && this.#soon(), { passive: true });
    window.addEventListener("resize", () => this.#mounted && this.#measure());
  }

  mount(main) {
    main.replaceChildren(this.element);
    document.title = "ATLAS";
    this.#mounted = true;
    this.#mustList = true;
    this.#render();
    this.#measure();
    this.#render();
    scrollTo(0, this.#scrollTop);
    this.#render();
    if (this.#focus !== null) this.focusRow(this.#focus);
    else this.filter.blur();
  }

  unmount() {
    this.#scrollTop = scrollY;
    this.#mounted = false;
  }

  focusFilter() {
    this.filter.focus();
    this.filter.select();
  }

  /** Esc: one thing at a time. */
  escape() {
    if (this.filter.value || this.#categories.size) {
      this.filter.value = "";
      this.#categories.clear();
      this.#relist();
    } else {
      this.filter.blur();
    }
  }

  // -- building -----------------------------------------------------------------------------------

  #build() {
    this.title = el("span");
    this.of = el("span", { class: "of" });
    this.proportion = el("div", { class: "proportion", "aria-hidden": "true" });
    this.parts = new Map();
    this.chips = new Map();
    const chips = CATEGORIES.map((category) => this.#chip(category));
    this.filter = el("input", {
      type: "search",
      placeholder: "Filter",
      "aria-label": "Filter services",
      "aria-keyshortcuts": "/",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.#relist(),
    });
    this.filter.addEventListener("keydown", (event) => this.#onFilterKey(event));
    this.together = el("button", {
      type: "button",
      hidden: true,
      onclick: () => confirmForAll(this.#state, ROLLING, [...this.#names].sort()),
    });
    this.sorting = el("select", { class: "sorting", "aria-label": "Sort by", onchange: () => this.#sortBy(this.sorting.value) });
    for (const { key, label } of COLUMNS) this.sorting.append(el("option", { value: key, text: `by ${label.toLowerCase()}` }));
    this.sorting.value = this.#sort.key;
    this.heads = new Map();
    const head = el("div", { class: "head", role: "row", "aria-rowindex": "1" });
    for (const column of COLUMNS) head.append(this.#head(column));
    this.space = el("div", { class: "space", role: "rowgroup" });
    this.nothing = el("p", { class: "nothing", hidden: true });
    this.list = el(
      "div",
      { class: "list", role: "table", "aria-label": "Services" },
      el("div", { role: "rowgroup", class: "head-group" }, head),
      this.space,
      this.nothing,
    );
    this.space.addEventListener("keydown", (event) => this.#onRowKey(event));
    this.space.addEventListener("focusin", (event) => this.#onFocus(event));
    this.element = el(
      "section",
      { class: "fleet", "aria-label": "Fleet" },
      el(
        "div",
        { class: "summary" },
        el("h1", {}, this.title, this.of),
        this.proportion,
        el(
          "div",
          { class: "controls" },
          el("div", { class: "chips", role: "group", "aria-label": "Only those that are" }, ...chips),
          el("div", { class: "filter" }, this.filter, el("kbd", { text: "/", "aria-hidden": "true" })),
          this.sorting,
          this.together,
        ),
      ),
      this.list,
    );
  }

  #chip(category) {
    const number = el("b");
    const button = el(
      "button",
      {
        class: `chip is-${category}`,
        type: "button",
        "aria-pressed": "false",
        hidden: true,
        onclick: () => {
          if (!this.#categories.delete(category)) this.#categories.add(category);
          this.#relist();
        },
      },
      glyph(category),
      number,
      el("span", { text: category }),
    );
    this.chips.set(category, { button, number });
    const part = el("span", { class: `is-${category}` });
    this.parts.set(category, part);
    this.proportion.append(part);
    return button;
  }

  #head({ key, label, number }) {
    const button = el("button", { type: "button", text: label, onclick: () => this.#sortBy(key) });
    const head = el("div", { role: "columnheader", class: `${key}${number ? " number" : ""}` }, button);
    this.heads.set(key, head);
    return head;
  }

  #sortBy(key) {
    const numbersDown = COLUMNS.find((column) => column.key === key)?.number ?? false;
    const descending = this.#sort.key === key ? !this.#sort.descending : numbersDown;
    this.#sort = { key, descending };
    this.sorting.value = key;
    this.#relist();
  }

  // -- news ---------------------------------------------------------------------------------------

  #onNews({ touched, listed }) {
    for (const name of touched) this.#touched.add(name);
    if (listed) this.#mustList = true;
    if (this.#mounted) this.#soon();
  }

  #soon() {
    this.#frame ??= requestAnimationFrame(() => this.#render());
  }

  #relist() {
    this.#mustList = true;
    this.#render();
  }

  #measure() {
    this.#rowHeight = this.space.firstElementChild?.offsetHeight || this.#rowHeight;
    this.#mustList = true;
    this.#soon();
  }

  #render() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    if (!this.#mounted) return;
    const { services } = this.#state;
    const isDue = this.#touched.size > 0 && performance.now() - this.#listedAt > RESORT_MS;
    if (this.#mustList || isDue) this.#list();
    const viewTop = -this.space.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(viewTop / this.#rowHeight) - SPARE_ROWS);
    const last = Math.min(this.#names.length, Math.ceil((viewTop + innerHeight) / this.#rowHeight) + SPARE_ROWS);
    const wanted = new Set(this.#names.slice(first, last));
    const focused = document.activeElement?.closest?.(".row")?.dataset.name;
    for (const [name, row] of this.#shown) {
      if (wanted.has(name) || (name === focused && services.has(name))) continue;
      this.#shown.delete(name);
      row.element.remove();
      if (this.#spare.length < SPARED_ROWS) this.#spare.push(row);
    }
    const now = this.#state.now();
    for (let index = first; index < last; index += 1) {
      const name = this.#names[index];
      let row = this.#shown.get(name);
      const isNew = row === undefined;
      if (isNew) {
        row = this.#spare.pop() ?? new Row();
        this.#shown.set(name, row);
      }
      if (isNew || this.#touched.has(name)) row.update(services.get(name), now);
      row.place(index, index * this.#rowHeight, index === this.#names.length - 1);
      if (isNew) {
        row.draw(this.#state);
        this.space.append(row.element);
      }
      setAttribute(row.link, "tabindex", name === this.#focus || (this.#focus === null && index === 0) ? "0" : "-1");
    }
    this.#touched.clear();
    const height = this.space.firstElementChild?.offsetHeight;
    if (height && height !== this.#rowHeight) this.#measure();
    prefill(this.#state, [...wanted]);
  }

  #list() {
    this.#mustList = false;
    this.#listedAt = performance.now();
    const all = [...this.#state.services.values()];
    const shown = all.filter(filterOf(this.filter.value, this.#categories));
    this.#names = ordered(shown, this.#sort);
    if (!this.#names.includes(this.#focus)) this.#focus = null;
    this.#summarize(all);
    this.space.style.height = `${this.#names.length * this.#rowHeight}px`;
    setAttribute(this.list, "aria-rowcount", String(this.#names.length + 1));
    this.nothing.hidden = this.#names.length > 0;
    setText(this.nothing, all.length ? "No service is like that. Esc clears the filter." : "No service has been heard yet.");
    for (const [key, head] of this.heads) {
      if (key !== this.#sort.key) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.#sort.descending ? "descending" : "ascending");
    }
  }

  #summarize(all) {
    const counts = new Map(CATEGORIES.map((category) => [category, 0]));
    for (const row of all) counts.set(row.category, counts.get(row.category) + 1);
    setText(this.title, plural(all.length, "service"));
    const hosts = new Set(all.map((row) => row.host).filter(Boolean));
    const shown = this.#names.length < all.length ? `${this.#names.length} shown` : "";
    setText(this.of, [hosts.size > 1 ? `on ${hosts.size} hosts` : "", shown].filter(Boolean).join(", "));
    const isSome = this.#names.length > 1 && this.#names.length < all.length && this.#names.length <= TOGETHER_MOST;
    this.together.hidden = !isSome;
    if (isSome) setText(this.together, `Restart these ${this.#names.length}…`);
    for (const [category, number] of counts) {
      const { button, number: text } = this.chips.get(category);
      setText(text, String(number));
      button.hidden = number === 0 && !this.#categories.has(category);
      setAttribute(button, "aria-pressed", String(this.#categories.has(category)));
      const part = this.parts.get(category);
      part.hidden = number === 0;
      part.style.flexGrow = String(number);
    }
    this.element.dispatchEvent(new CustomEvent("counted", { detail: counts, bubbles: true }));
  }

  #age() {
    const now = this.#state.now();
    for (const [name, row] of this.#shown) {
      const service = this.#state.services.get(name);
      if (service) row.age(service, now);
    }
  }

  #drawSparks() {
    if (document.hidden) return;
    for (const [name, row] of this.#shown) if (this.#state.services.has(name)) row.draw(this.#state);
  }

  // -- keyboard -----------------------------------------------------------------------------------

  #onFilterKey(event) {
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      if (this.#names.length) this.focusRow(this.#names[0]);
    }
  }

  #onRowKey(event) {
    const at = this.#names.indexOf(this.#focus);
    const page = Math.max(1, Math.floor(innerHeight / this.#rowHeight) - 2);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.#names.length - 1 };
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (event.key === "ArrowUp" && at === 0) {
      this.focusFilter();
      return;
    }
    this.focusRow(this.#names[Math.min(this.#names.length - 1, Math.max(0, moves[event.key]))]);
  }

  #onFocus(event) {
    const name = event.target.closest(".row")?.dataset.name;
    if (name === undefined || name === this.#focus) return;
    this.#focus = name;
    this.#soon();
  }

  /** Bring a row into sight, and the focus to it. */
  focusRow(name) {
    const index = this.#names.indexOf(name);
    if (index < 0) return;
    this.#focus = name;
    const top = this.space.getBoundingClientRect().top + index * this.#rowHeight;
    const above = this.heads.get("name").offsetHeight + 8;
    if (top < above) scrollBy(0, top - above - this.#rowHeight);
    else if (top + this.#rowHeight > innerHeight) scrollBy(0, top + 2 * this.#rowHeight - innerHeight);
    this.#render();
    this.#shown.get(name)?.link.focus({ preventScroll: true });
  }
}
