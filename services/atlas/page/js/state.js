// What ATLAS has told: services, notes, events, commands, and the last minutes of each service's numbers.

/** What a sparkline shows: so many values, so many seconds apart. */
export const POINTS = 90;
export const STEP_S = 2;
const EVENTS_KEPT = 500;
const COMMANDS_KEPT = 300;

/** What a service is, in one word: of its process first, and of its health if that runs. */
export function category(row) {
  switch (row.state) {
    case "RUNNING":
      if (row.phase === null) return row.incarnation === null ? "unwatched" : "unknown";
      return { healthy: "healthy", degraded: "degraded", unhealthy: "failing" }[row.health] ?? "changing";
    case "FATAL":
    case "BACKOFF":
      return "failing";
    case "STARTING":
    case "STOPPING":
      return "changing";
    case "STOPPED":
    case "EXITED":
      return "stopped";
    default:
      return "unknown";
  }
}

/** In the order of what wants attention. */
export const CATEGORIES = ["failing", "unknown", "degraded", "changing", "stopped", "unwatched", "healthy"];

/** Of one number of one service; NaN where nobody knows. */
class Ring {
  constructor() {
    this.values = new Float64Array(POINTS).fill(NaN);
    this.known = 0;
  }

  push(value) {
    this.values.copyWithin(0, 1);
    this.values[POINTS - 1] = value ?? NaN;
    this.known = Math.min(POINTS, this.known + 1);
  }

  /** Put what was before the page was open (as long as this, and up to now) where the page knows nothing. */
  prefill(older) {
    this.values.set(older.slice(0, POINTS - this.known), 0);
    this.known = POINTS;
  }
}

export class State extends EventTarget {
  services = new Map();
  cpu = new Map();
  memory = new Map();
  events = [];
  commands = new Map();
  notes = [];
  host = "";
  seq = null;
  #heardAt = 0;
  /** Seconds that ATLAS's clock is ahead of this browser's. */
  ahead = 0;

  constructor() {
    super();
    setInterval(() => this.#sample(), STEP_S * 1000);
  }

  /** Now, by ATLAS's clock. */
  now() {
    return Date.now() / 1000 + this.ahead;
  }

  /** When ATLAS last told anything, by its clock. */
  heard() {
    return this.#heardAt;
  }

  /** Take a message; false if one is missing before it. */
  take(message) {
    if (message.type === "delta" && message.seq !== this.seq + 1) return false;
    this.seq = message.seq;
    this.ahead = message.time_s - Date.now() / 1000;
    this.#heardAt = message.time_s;
    const touched = new Set();
    let listed = false;
    if (message.type === "snapshot") {
      this.host = message.host;
      const present = new Set(message.services.map((row) => row.instance));
      listed = this.#remove([...this.services.keys()].filter((name) => !present.has(name)));
    }
    for (const news of message.services ?? []) {
      const known = this.services.get(news.instance);
      if (known === undefined) {
        this.#add(news);
        listed = true;
      } else {
        Object.assign(known, news);
      }
      const row = this.services.get(news.instance);
      row.category = category(row);
      touched.add(news.instance);
    }
    listed = this.#remove(message.gone ?? []) || listed;
    if (message.notes !== undefined && message.notes !== null) this.notes = message.notes;
    const events = this.#newEvents(message);
    const commands = this.#newCommands(message);
    this.dispatchEvent(new CustomEvent("news", { detail: { touched, listed, events, commands } }));
    return true;
  }

  #add(row) {
    this.services.set(row.instance, { ...row });
    const [cpu, memory] = [new Ring(), new Ring()];
    cpu.push(row.cpu_cores);
    memory.push(row.rss_bytes);
    this.cpu.set(row.instance, cpu);
    this.memory.set(row.instance, memory);
  }

  #remove(names) {
    for (const name of names) {
      this.services.delete(name);
      this.cpu.delete(name);
      this.memory.delete(name);
    }
    return names.length > 0;
  }

  #newEvents(message) {
    const known = new Set(this.events.map((event) => event.id));
    const fresh = (message.events ?? []).filter((event) => !known.has(event.id));
    if (fresh.length) this.events = [...this.events, ...fresh].slice(-EVENTS_KEPT);
    return message.type === "snapshot" ? [] : fresh;
  }

  #newCommands(message) {
    for (const command of message.commands ?? []) {
      this.commands.delete(command.id);
      this.commands.set(command.id, command);
    }
    for (const id of [...this.commands.keys()].slice(0, Math.max(0, this.commands.size - COMMANDS_KEPT))) {
      this.commands.delete(id);
    }
    return message.commands ?? [];
  }

  #sample() {
    for (const [name, row] of this.services) {
      this.cpu.get(name).push(row.cpu_cores);
      this.memory.get(name).push(row.rss_bytes);
    }
    this.dispatchEvent(new Event("sample"));
  }
}
