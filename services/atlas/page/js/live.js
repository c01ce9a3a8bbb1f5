// The WebSocket: connects, notices silence, and comes back by itself.

const SILENT_MS = 5000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;

/** `state` gets the messages; "link" events tell of the connection: live, or since when it is not. */
export class Link extends EventTarget {
  #state;
  #socket = null;
  #waitMs = FIRST_WAIT_MS;
  #watch = null;
  #retry = null;
  /** Unix time in ms since when nothing came; null while it is live. */
  lostAt = Date.now();
  retryAt = null;
  everLive = false;

  constructor(state) {
    super();
    this.#state = state;
    window.addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  connect() {
    clearTimeout(this.#retry);
    this.#retry = this.retryAt = null;
    const url = new URL("api/v1/live", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onmessage = (message) => this.#heard(socket, message.data);
    socket.onclose = () => this.#lost(socket);
    this.#await(socket);
    this.dispatchEvent(new Event("link"));
  }

  /** Try now, if it is waiting to. */
  hurry() {
    if (this.#retry !== null) this.connect();
  }

  #heard(socket, text) {
    if (socket !== this.#socket) return;
    this.#await(socket);
    if (!this.#state.take(JSON.parse(text))) {
      this.#lost(socket); // a message is missing: a new connection begins with a snapshot
      return;
    }
    if (this.lostAt !== null) {
      this.lostAt = null;
      this.everLive = true;
      this.#waitMs = FIRST_WAIT_MS;
      this.dispatchEvent(new Event("link"));
    }
  }

  #await(socket) {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => this.#lost(socket), SILENT_MS);
  }

  #lost(socket) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    clearTimeout(this.#watch);
    socket.close();
    this.lostAt ??= Date.now();
    const waitMs = this.#waitMs * (0.75 + Math.random() / 2); // not all pages at once
    this.#waitMs = Math.min(LONGEST_WAIT_MS, this.#waitMs * 2);
    this.retryAt = Date.now() + waitMs;
    this.#retry = setTimeout(() => this.connect(), waitMs);
    this.dispatchEvent(new Event("link"));
  }
}
