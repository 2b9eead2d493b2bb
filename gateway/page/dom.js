// Builds elements. Nothing here, or in any other file of the page, parses text as HTML.

// h("button", {class: "icon", onclick: stop, "aria-label": "Stop"}, child, "text")
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

// Returns an icon from the symbols in index.html.
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export function action(name, label, onclick, properties = {}) {
  return h("button", { type: "button", class: "action", onclick, ...properties }, icon(name), label);
}

// Announces a text to screen readers, once.
export function announce(text) {
  $("news").textContent = text;
}

// Copies a text, and confirms this for a moment on the button, which says "Copy" at other times.
export async function copy(button, text) {
  const label = button.lastChild;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    label.textContent = "This browser did not let the page copy";
  }
  announce(label.textContent);
  setTimeout(() => { label.textContent = "Copy"; }, 1500);
}
