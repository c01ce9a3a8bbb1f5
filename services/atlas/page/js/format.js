// Numbers and times as people read them. Unknown is "–", never 0.

const NONE = "–";
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < BYTES.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${BYTES[unit]}`;
}

/** Cores as per cent of one core. */
export function cpu(cores) {
  if (cores === null || cores === undefined || !Number.isFinite(cores)) return NONE;
  const percent = cores * 100;
  return `${percent >= 10 ? Math.round(percent) : percent.toFixed(1)} %`;
}

/** A short time: milliseconds below a second. */
export function lag(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  if (seconds >= 1) return `${seconds >= 10 ? Math.round(seconds) : seconds.toFixed(1)} s`;
  const ms = seconds * 1000;
  return `${ms >= 10 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

/** How long, in two units at most. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** How long, in one unit. */
export function age(seconds) {
  if (seconds < 3600) return duration(seconds);
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

/** Took: with fractions, as commands are quick. */
export function took(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return seconds < 10 ? `${seconds.toFixed(2)} s` : duration(seconds);
}

export function count(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (Math.abs(value) >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (Math.abs(value) >= 1e4) return `${Math.round(value / 1e3)} k`;
  if (Math.abs(value) >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return value.toFixed(value >= 10 ? 1 : 2);
}

export function perSecond(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? NONE : `${count(value)}/s`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTES = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Time of day, with the date if it is not today. Local time, 24 hours. */
export function clock(unixSeconds) {
  if (unixSeconds === null || unixSeconds === undefined) return NONE;
  const date = new Date(unixSeconds * 1000);
  const time = CLOCK.format(date);
  return date.toDateString() === new Date().toDateString() ? time : `${DAY.format(date)} ${time}`;
}

/** For the time axis of a chart that spans so many seconds. */
export function tick(unixSeconds, spanSeconds) {
  const date = new Date(unixSeconds * 1000);
  if (spanSeconds > 2 * 86400) return DAY.format(date);
  return spanSeconds > 900 ? MINUTES.format(date) : CLOCK.format(date);
}

export function plural(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}
