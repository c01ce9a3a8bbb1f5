// The page: which view is shown, the state of the connection, and the keys that work everywhere.

import { byId, el, glyph, setText } from "./dom.js";
import { FleetView } from "./fleet.js";
import { clock, plural } from "./format.js";
import { Link } from "./live.js";
import { ServiceView } from "./service.js";
import { State } from "./state.js";
import { takeTokenFromAddress } from "./token.js";

takeTokenFromAddress();

const state = new State();
const link = new Link(state);
const fleet = new FleetView(state);
const main = byId("main");
let view = null;

// -- which view ------------------------------------------------------------------------------------

function route() {
  const hash = location.hash;
  const service = /^#\/service\/(.+)$/.exec(hash);
  if (/^#token=/.test(hash)) takeTokenFromAddress();
  else if (!service && !["", "#", "#/"].includes(hash)) return;
  view?.unmount();
  view = service ? new ServiceView(state, decodeURIComponent(service[1])) : fleet;
  view.mount(main);
}

// -- the connection --------------------------------------------------------------------------------

function showLink() {
  const isLive = link.lostAt === null;
  const waitS = link.retryAt === null ? 0 : Math.max(0, Math.ceil((link.retryAt - Date.now()) / 1000));
  const again = waitS > 0 ? `Trying again in ${waitS} s.` : "Trying again.";
  const category = isLive ? "healthy" : "failing";
  const place = byId("link");
  if (place.dataset.is !== category) {
    place.dataset.is = category;
    place.className = `link is-${category}`;
    place.replaceChildren(glyph(category), el("span", { class: "word", text: isLive ? "live" : link.everLive ? "disconnected" : "connecting" }));
  }
  const banner = byId("banner");
  const since = `Disconnected since ${clock(link.lostAt / 1000)}`;
  const showsBanner = !isLive && (link.everLive || Date.now() - link.lostAt > 2000);
  if (showsBanner && banner.hidden) {
    banner.replaceChildren(
      el("b", { text: link.everLive ? since : "ATLAS does not answer" }),
      el("span", { text: link.everLive ? ". What you see is how it was then. " : ". " }),
      el("span", { class: "again", "aria-hidden": "true" }), // it changes each second: not to be read out
    );
  }
  banner.hidden = !showsBanner;
  if (showsBanner) setText(banner.querySelector(".again"), again);
  main.classList.toggle("unheard", showsBanner && link.everLive);
}

link.addEventListener("link", showLink);
setInterval(() => link.lostAt === null || showLink(), 500);

// -- notes on hosts, and the tab's title -------------------------------------------------------------

let shownNotes = "";
state.addEventListener("news", () => {
  setText(byId("host"), state.host);
  const notes = state.notes.join("\n");
  if (notes === shownNotes) return;
  shownNotes = notes;
  byId("notes").replaceChildren(...state.notes.map((text) => el("li", { text })));
  byId("notes").hidden = state.notes.length === 0;
});

document.addEventListener("counted", (event) => {
  if (view !== fleet) return;
  const failing = event.detail.get("failing");
  document.title = failing ? `${plural(failing, "service")} failing · ATLAS` : "ATLAS";
});

// -- keys --------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.closest("input:not([type=checkbox]):not([type=radio]), textarea, select");
  if (event.key === "Escape") {
    if (view === fleet) fleet.escape();
    else if (!view.escape()) location.hash = "#/";
  } else if (isTyping) {
    return;
  } else if (event.key === "/") {
    event.preventDefault();
    if (view !== fleet) {
      location.hash = "#/";
      route();
    }
    fleet.focusFilter();
  } else if (event.key === "?") {
    byId("help").showModal();
  }
});

byId("help-button").addEventListener("click", () => byId("help").showModal());

window.addEventListener("hashchange", route);
link.connect();
route();
