// Sparklines: the shape of the last minutes, without axes.

import { svg } from "./dom.js";

const WIDTH = 90;
const HEIGHT = 20;

export function spark() {
  const path = svg("path");
  return svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, path);
}

/** Draw values (oldest first, NaN for unknown); `floor` is the least range shown, so that noise is not a mountain. */
export function drawSpark(element, values, floor) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  let d = "";
  if (high >= low) {
    const range = Math.max(high - low, floor, high * 0.05);
    const base = Math.max(0, (low + high - range) / 2);
    const step = WIDTH / (values.length - 1);
    let pen = "M";
    for (let i = 0; i < values.length; i += 1) {
      if (Number.isNaN(values[i])) {
        pen = "M";
        continue;
      }
      d += `${pen}${(i * step).toFixed(1)} ${(HEIGHT - 1 - ((values[i] - base) / range) * (HEIGHT - 2)).toFixed(1)}`;
      pen = "L";
    }
  }
  const path = element.firstChild;
  if (path.getAttribute("d") !== d) path.setAttribute("d", d);
}
