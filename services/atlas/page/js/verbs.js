// What can be asked of a service: in which words, when, and with what.

const IS_UP = (row) => ["RUNNING", "STARTING", "BACKOFF"].includes(row.state);
const HAS_DAEMON = (row) => IS_UP(row) && row.phase !== null;

export const HOUR_S = 3600;

/** The program that an instance belongs to: NAME-2 is a further instance of NAME, if there is one. */
export function programOf(row, services) {
  const found = /^(.+)-\d+$/.exec(row.instance);
  return found && services.has(found[1]) ? found[1] : row.instance;
}

/** Of several services: one batch after the other, and no further after the first failure. */
export const ROLLING = {
  verb: "restart",
  label: "Restart",
  say: "So many at a time; the next when those are ready, and none after the first that fails.",
  fields: [{ name: "batch", label: "At a time", min: 1, max: 1000, value: () => "1", number: true }],
};

/** `when` it makes sense; `first` ones have a button of their own; `fields` are asked for before it is done. */
export const VERBS = [
  {
    verb: "restart",
    label: "Restart",
    first: true,
    when: IS_UP,
    say: "It finishes its requests, ends, and is started anew. Done once the new process is ready.",
  },
  {
    verb: "start",
    label: "Start",
    first: true,
    when: (row) => !IS_UP(row) && row.enabled !== false,
    say: "supervisord starts it. Done once it is ready.",
  },
  {
    verb: "stop",
    label: "Stop",
    first: true,
    danger: true,
    when: (row) => IS_UP(row) || row.state === "UNKNOWN",
    say: "It finishes its requests and ends, and stays down until it is started.",
  },
  {
    verb: "shed",
    label: "Shed load",
    title: "Shed load of",
    when: (row) => HAS_DAEMON(row) && !row.shedding,
    say: "It is told to serve less, until it is told to resume.",
  },
  { verb: "resume", label: "Resume", when: (row) => HAS_DAEMON(row) && row.shedding, say: "It serves as before it was told to shed load." },
  {
    verb: "loop-mode",
    label: "Loop mode…",
    title: "Set the loop mode of",
    do: "Set",
    when: HAS_DAEMON,
    say: "How its control loop runs, until its process ends.",
    fields: [
      {
        name: "mode",
        label: "Mode",
        choices: [
          ["on", "on: it decides and acts"],
          ["shadow", "shadow: it decides and only records"],
          ["off", "off: it rests"],
        ],
        value: (count, row) => row.ooda_mode ?? "on",
      },
    ],
  },
  { verb: "health-check", label: "Check health now", title: "Check the health of", do: "Check", when: HAS_DAEMON, say: "Every health check runs now." },
  {
    verb: "maintenance",
    label: "Begin maintenance…",
    title: "Begin maintenance of",
    do: "Begin",
    when: (row) => !row.maintenance,
    say: "The warden does not judge it meanwhile. It is still started again if it ends.",
    with: { on: true },
    fields: [
      {
        name: "for_s",
        label: "For",
        choices: [
          [String(HOUR_S / 4), "15 minutes"],
          [String(HOUR_S), "an hour"],
          [String(4 * HOUR_S), "four hours"],
          ["", "until it is ended"],
        ],
        value: () => String(HOUR_S),
        number: true,
      },
    ],
  },
  { verb: "maintenance", label: "End maintenance", title: "End maintenance of", do: "End", when: (row) => row.maintenance, say: "The warden judges it again.", with: { on: false } },
  {
    verb: "disable",
    label: "Disable",
    danger: true,
    when: (row) => row.enabled !== false,
    say: "It is stopped, and nobody can start it until it is enabled, after restarts of supervisord neither.",
  },
  { verb: "enable", label: "Enable", when: (row) => row.enabled === false, say: "It may be started again, and is if it starts by itself." },
  {
    verb: "reset-failed",
    label: "Forget failures",
    title: "Forget failures of",
    do: "Forget",
    when: (row) => row.state === "FATAL" || row.state === "BACKOFF",
    say: "Failures are counted anew. One that was given up becomes stopped, not started.",
  },
  {
    verb: "scale",
    label: "Scale…",
    when: () => true,
    say: "So many instances of the program are to run: NAME, NAME-2, NAME-3 …",
    ofProgram: true,
    fields: [{ name: "instances", label: "Instances", min: 1, max: 64, value: (count) => String(count), number: true }],
  },
];
