// Orders: asked for once more, given with the operator's token, and followed to their outcome.

import { get, post } from "./api.js";
import { el } from "./dom.js";
import { plural, took } from "./format.js";
import { Toast } from "./toasts.js";
import { forgetToken, keepToken, token } from "./token.js";
import { programOf } from "./verbs.js";

const TIMEOUT_S = 60;
const POLL_MS = 1000;
const GIVE_UP_MS = 15000;

/** Ask whether to do this to one service; what follows is told in a toast. */
export function confirmCommand(state, spec, row) {
  const name = spec.ofProgram ? programOf(row, state.services) : row.instance;
  const instances = [...state.services.values()].filter((other) => programOf(other, state.services) === name).length;
  ask(state, spec, [name], (field) => field.value(instances, row));
}

/** Ask whether to do this to all of these. */
export function confirmForAll(state, spec, names) {
  ask(state, spec, names, (field) => field.value());
}

function ask(state, spec, names, valueOf) {
  const fields = (spec.fields ?? []).map((field) => fieldOf(field, valueOf(field)));
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const tokenInput = el("input", { type: "password", name: "token", autocomplete: "off", spellcheck: "false", required: true });
  const tokenField = el(
    "label",
    { class: "field", hidden: token() !== "" },
    el("span", { text: "Operator token" }),
    tokenInput,
    el("small", { text: `In operator.token of ATLAS's run directory on ${state.host}. Kept for this tab only.` }),
  );
  tokenInput.disabled = tokenField.hidden;
  const label = spec.label.replace("…", "");
  const submit = el("button", { class: spec.danger ? "danger" : "primary", text: spec.do ?? label });
  const dialog = el(
    "dialog",
    { class: "ask", "aria-labelledby": "ask-title", "aria-describedby": "ask-say" },
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "ask-title" }, `${spec.title ?? label} `, el("span", { class: "subject", text: subjectOf(names) })),
      el("p", { id: "ask-say", text: spec.say }),
      names.length > 1 ? el("p", { class: "names", text: names.join(", "), tabindex: "0" }) : null,
      ...fields.map((field) => field.element),
      tokenField,
      problem,
      el(
        "div",
        { class: "actions" },
        el("button", { type: "button", text: "Cancel", onclick: () => dialog.close() }),
        submit,
      ),
    ),
  );
  const key = newKey(); // of this asking: pressed twice, it is done once
  dialog.addEventListener("close", () => dialog.remove());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!tokenField.hidden) keepToken(tokenInput.value);
    submit.disabled = true;
    const order = { verb: spec.verb, names, timeout_s: TIMEOUT_S, ...spec.with };
    for (const field of fields) if (field.read() !== null) order[field.name] = field.read();
    try {
      const answer = await post("commands", order, token(), key);
      dialog.close();
      follow(state, `${spec.verb} ${subjectOf(names)}`, new Set(Object.values(answer.commands)));
    } catch (error) {
      if (error.status === 401 || error.status === 429) {
        forgetToken();
        tokenField.hidden = tokenInput.disabled = false;
        tokenInput.value = "";
        tokenInput.focus();
        problem.textContent = error.status === 401 ? "That is not the operator token." : error.message;
      } else {
        problem.textContent = error.message;
      }
      problem.hidden = false;
      submit.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  (tokenField.hidden ? (fields[0]?.focus ?? submit) : tokenInput).focus();
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fieldOf(field, value) {
  const read = (text) => (text === "" ? null : field.number ? Number(text) : text);
  if (!field.choices) {
    const input = el("input", { type: "number", name: field.name, min: field.min, max: field.max, value, required: true });
    const element = el("label", { class: "field" }, el("span", { text: field.label }), input);
    return { name: field.name, element, focus: input, read: () => read(input.value) };
  }
  const inputs = field.choices.map(([choice]) =>
    el("input", { type: "radio", name: field.name, value: choice, checked: choice === value }),
  );
  const element = el("fieldset", { class: "field" }, el("legend", { text: field.label }));
  field.choices.forEach(([, words], index) => element.append(el("label", {}, inputs[index], words)));
  const chosen = () => inputs.find((input) => input.checked);
  return { name: field.name, element, focus: chosen() ?? inputs[0], read: () => read(chosen()?.value ?? "") };
}

// -- outcomes -------------------------------------------------------------------------------------

const STAGES = { waiting: "waits for its turn", asked: "asked", accepted: "accepted, under way" };
const ENDS = { done: "done", failed: "failed", rejected: "rejected", unknown: "outcome unknown" };

/** What became of a command, in words. */
export function outcomeWords(command) {
  if (command.kind === null) return STAGES[command.stage] ?? command.stage;
  const time = command.took_s === null ? "" : ` in ${took(command.took_s)}`;
  const reason = command.reason ? `: ${command.reason}` : "";
  return command.kind === "done" ? `done${time}${reason}` : `${ENDS[command.kind]}${reason}`;
}

/** Tell how an order goes: from the live feed, and by asking while that says nothing. */
function follow(state, what, ids) {
  const toast = new Toast(`${what}: sent`);
  const known = new Map();
  let heardAt = performance.now();
  const take = (commands) => {
    const ours = commands.filter((command) => ids.has(command.id));
    if (!ours.length) return;
    heardAt = performance.now();
    for (const command of ours) known.set(command.id, command);
    const all = [...known.values()];
    const text = `${what}: ${ids.size === 1 ? outcomeWords(all[0]) : summaryWords(all, ids.size)}`;
    if (all.length < ids.size || all.some((command) => command.kind === null)) {
      toast.say(text);
      return;
    }
    finish();
    toast.end(text, all.every((command) => command.kind === "done"));
  };
  const onNews = ({ detail }) => take(detail.commands);
  const timer = setInterval(async () => {
    if (performance.now() - heardAt < POLL_MS) return;
    const open = [...ids].find((id) => (known.get(id)?.kind ?? null) === null);
    try {
      take([await get(`commands/${open}`)]);
    } catch {
      if (performance.now() - heardAt < GIVE_UP_MS) return;
      finish();
      toast.end(`${what}: ATLAS does not say what became of it; see Commands`, false);
    }
  }, POLL_MS);
  const finish = () => {
    clearInterval(timer);
    state.removeEventListener("news", onNews);
  };
  state.addEventListener("news", onNews);
  take([...state.commands.values()]);
}

function summaryWords(commands, total) {
  const done = commands.filter((command) => command.kind === "done").length;
  const bad = commands.find((command) => command.kind !== null && command.kind !== "done");
  return `${done} of ${total} done${bad ? `; ${bad.name} ${outcomeWords(bad)}` : ""}`;
}

function subjectOf(names) {
  return names.length === 1 ? names[0] : plural(names.length, "service");
}
