// Edits the settings of requests, the key, and the page's look. A change is stored at once.

import { change, settings } from "../store.js";
import { h } from "../dom.js";
import { panel } from "./panel.js";

const NUMBERS = [
  ["temperature", "Temperature", "model’s own", "0 to 2; at 0 the likeliest token", { min: 0, max: 2, step: "any" }],
  ["top_p", "Top p", "model’s own", "more than 0, up to 1", { min: 0, max: 1, step: "any" }],
  ["max_tokens", "Limit of tokens", "none", "of an answer", { min: 1, step: 1 }],
  ["seed", "Seed", "random", "empty: a new one each time", { min: 0, step: 1 }],
];

// on: {themed(), keyed()}, called when the theme has changed, and when another key was entered.
export function openSettings(on) {
  const kept = settings();
  const set = (name) => (event) => change({ [name]: event.target.value });
  const numbers = NUMBERS.map(([name, label, empty, words, limits]) => h("label", {}, label,
    h("input", { type: "number", inputmode: "decimal", placeholder: empty, value: kept[name], oninput: set(name), ...limits }),
    h("small", {}, words)));
  const key = h("input", { type: "password", autocomplete: "off", spellcheck: "false", value: kept.key, oninput: set("key"), onchange: on.keyed });
  const steady = h("select", { oninput: (event) => change({ steady: event.target.value === "on" }) },
    ...[["on", "as it is made"], ["off", "in bursts, as it comes"]].map(([value, words]) => h("option", { value, selected: kept.steady === (value === "on") }, words)));
  const theme = h("select", { oninput: set("theme"), onchange: on.themed },
    ...[["auto", "as the system"], ["light", "light"], ["dark", "dark"]].map(([value, words]) => h("option", { value, selected: kept.theme === value }, words)));
  panel("settings", "Settings",
    h("div", { class: "fields" }, ...numbers),
    h("label", {}, "System prompt", h("textarea", { value: kept.system, oninput: set("system") })),
    h("label", {}, "Tools", h("textarea", { class: "mono", spellcheck: "false", value: kept.tools, oninput: set("tools") }),
      h("small", {}, "A JSON list, as the OpenAI API takes it. The page shows calls, and runs none.")),
    h("div", { class: "fields" },
      h("label", {}, "API key", key, h("small", {}, "Needed only where the service asks for one.")),
      h("label", {}, "Steady text", steady, h("small", {}, "A pass brings several tokens at once.")),
      h("label", {}, "Colours of the page", theme)),
    h("small", {}, "Settings and conversations are kept in this browser only, the key too. What the edge drafts with, and how the verifier judges, are settings of the services."));
}
