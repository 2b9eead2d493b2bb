// Shows what to paste into other clients, so that they use this service. `picospec connect` reads
// the same table, clients.json, and fills it in the same way.

import { get } from "../api.js";
import { action, copy, h } from "../dom.js";
import { settings } from "../store.js";
import { panel } from "./panel.js";

const MAX_OUTPUT_TOKENS = 32_000;
const HIDDEN = "••••••••";

const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);
const escaped = (text) => JSON.stringify(text).slice(1, -1);
const QUOTES = { shell, text: String };

export function fill({ format, text }, values) {
  const quote = QUOTES[format] ?? escaped;
  return `${text.join("\n")}\n`.replace(/\$\{(\w+)\}/g, (_, name) => quote(String(values[name])));
}

function valuesOf({ id, context_length: context }, key) {
  const output = Math.min(Math.floor(context / 4), MAX_OUTPUT_TOKENS);
  return { url: location.origin, model: id, key, context, output, input: context - output };
}

export async function openConnect() {
  const body = h("div", { class: "wide" }, "Asking for the model …");
  panel("connect", "Use it in …", body);
  try {
    const [clients, models] = await Promise.all([get("/page/clients.json"), get("/v1/models")]);
    draw(body, clients, models.data[0]);
  } catch (error) {
    body.replaceChildren(h("p", {}, `${error.message} ${error.advice ?? ""}`));
  }
}

function draw(body, clients, model) {
  const { key } = settings();
  const shown = valuesOf(model, key ? HIDDEN : "none");
  const copied = valuesOf(model, key || "none");
  const part = (each) => h("div", { class: "part" },
    each.files ? h("p", {}, h("code", {}, each.files.at(-1))) : null,
    h("pre", { tabindex: "0" }, fill(each, shown)),
    action("copy", "Copy", (event) => copy(event.currentTarget, fill(each, copied))));
  body.replaceChildren(
    h("p", {}, "On the machine of the client, ", h("code", {}, "picospec connect NAME --write"), " puts this where it belongs, and ",
      h("code", {}, "picospec launch NAME"), " runs it without a change of its files."),
    ...clients.map(({ title, steps = [], parts }) => h("details", { class: "client", name: "client" },
      h("summary", {}, title), ...steps.map((step) => h("p", {}, step)), ...parts.map(part))));
}
