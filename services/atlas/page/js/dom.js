// Elements without HTML: whatever a service calls itself, or writes into its log, stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An element; props are attributes, but `text`, `class` and `on…` listeners. null children are left out. */
export function el(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "class") element.setAttribute("class", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set the text if it is another: an assignment touches the document even if it is not. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** The sign of a category; index.html has the shapes. */
export function glyph(category) {
  return svg("svg", { class: "glyph", "aria-hidden": "true" }, svg("use", { href: `#g-${category}` }));
}

export function byId(id) {
  return document.getElementById(id);
}
