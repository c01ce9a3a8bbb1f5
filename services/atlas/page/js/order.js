// Which services are shown, and in what order. Nothing of the document here.

import { CATEGORIES } from "./state.js";
import { COLUMNS } from "./row.js";

const KEYS = {
  state: (row) => row.state,
  health: (row) => row.health,
  host: (row) => row.host ?? "",
  name: (row) => row.instance,
  service: (row) => row.service,
  ooda: (row) => `${row.ooda_phase ?? ""} ${row.ooda_mode ?? ""}`,
};

/** A predicate of a row: every word must be in it; `key:value` asks one field only. */
export function filterOf(text, categories) {
  const tests = text
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => {
      const [key, ...rest] = word.split(":");
      const value = rest.join(":");
      if (value && KEYS[key]) return (row) => KEYS[key](row).toLowerCase().includes(value);
      return (row) => `${row.instance} ${row.reason} ${row.host ?? ""}`.toLowerCase().includes(word);
    });
  return (row) => (categories.size === 0 || categories.has(row.category)) && tests.every((test) => test(row));
}

const words = new Intl.Collator("en", { numeric: true }); // made once: that is what is slow about localeCompare

function compare(a, b) {
  if (a === b) return 0;
  if (typeof a === "string") return words.compare(a, b);
  return a < b ? -1 : 1;
}

const byName = (a, b) => compare(a.instance, b.instance);
const byTrouble = (a, b) => CATEGORIES.indexOf(a.category) - CATEGORIES.indexOf(b.category);

/** Names in order; equal ones by name. Health sorts by what wants attention first. */
export function ordered(rows, { key, descending }) {
  const sort = COLUMNS.find((column) => column.key === key)?.sort;
  const first = sort ? (a, b) => compare(sort(a), sort(b)) : byTrouble;
  const turn = descending ? -1 : 1;
  return rows.sort((a, b) => turn * first(a, b) || byName(a, b)).map((row) => row.instance);
}
