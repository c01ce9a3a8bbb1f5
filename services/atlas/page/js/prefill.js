// What the sparklines cannot know: the minutes before the page was open, from ATLAS's history.
// Only of services that stay in sight, two at a time, and each once.

import { ofService } from "./api.js";
import { POINTS, STEP_S } from "./state.js";

const AT_ONCE = 2;
const SETTLED_MS = 400;

const asked = new Set();
let queue = [];
let running = 0;
let timer = null;

export function prefill(state, names) {
  queue = names.filter((name) => !asked.has(name));
  clearTimeout(timer);
  if (queue.length) timer = setTimeout(() => next(state), SETTLED_MS);
}

function next(state) {
  while (running < AT_ONCE && queue.length) {
    const name = queue.shift();
    asked.add(name);
    running += 1;
    fill(state, name).finally(() => {
      running -= 1;
      next(state);
    });
  }
}

async function fill(state, name) {
  const now = state.now();
  let answer;
  try {
    answer = await ofService(name, "metrics", { since: Math.floor(now - POINTS * STEP_S), step: STEP_S });
  } catch {
    return; // no history is no harm: the line begins now
  }
  for (const [rings, key] of [[state.cpu, "cpu_cores"], [state.memory, "rss_bytes"]]) {
    const older = new Array(POINTS).fill(NaN);
    for (const point of answer.points) {
      const age = Math.floor((now - point.time_s) / STEP_S);
      if (age >= 0 && age < POINTS) older[POINTS - 1 - age] = point[key]?.avg ?? NaN;
    }
    rings.get(name)?.prefill(older);
  }
}
