// Shows what to paste into other clients, so that they use this service. `picospec connect` reads
// the same table, clients.json, and fills it in the same way.

import { Failure, get } from "../api.js";
import { action, copy, h } from "../dom.js";
import { settings } from "../store.js";
import { panel } from "./panel.js";

const MAX_OUTPUT_TOKENS = 32_000;
const HIDDEN = "••••••••";

const SEPARATORS = { json: "," }; // between the texts of several models

const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);
const escaped = (text) => JSON.stringify(text).slice(1, -1);
const QUOTES = { shell, text: String };

// models: the values of each; a list of lines within the text is for each of them, the rest for the first.
export function fill({ format, text }, models) {
  const quote = QUOTES[format] ?? escaped;
  const filled = (lines, values) => lines.join("\n").replace(/\$\{(\w+)\}/g, (_, name) => quote(String(values[name])));
  const each = (lines) => models.map((values) => filled(lines, values)).join(`${SEPARATORS[format] ?? ""}\n`);
  return `${text.map((line) => (Array.isArray(line) ? each(line) : filled([line], models[0]))).join("\n")}\n`;
}

function valuesOf({ id, max_model_len: context }, key) {
  const output = Math.min(Math.floor(context / 4), MAX_OUTPUT_TOKENS);
  return { url: location.origin, model: id, key, context, output, input: context - output };
}

// Returns the models for a client's settings, `first` first: no second names, and none of other
// services, or that is away and of unknown context.
function settable(data, first) {
  const names = data.map(({ id }) => id);
  const own = data.filter(({ id, root, owned_by: owner, state, max_model_len: context }) =>
    owner !== "relayed" && (context || state !== "away") && (root === id || !names.includes(root)));
  if (!own.length) throw new Failure("No model is known yet.", "Wait until one of the verifiers has been reached.");
  return own.sort((one, other) => (other.id === first) - (one.id === first));
}

// chosen: the name of one of several models, for clients that hold one.
export async function openConnect(chosen) {
  const body = h("div", { class: "wide" }, "Asking for the models …");
  panel("connect", "Use it in …", body);
  try {
    const [clients, models] = await Promise.all([get("/page/clients.json"), get("/v1/models")]);
    draw(body, clients, settable(models.data, chosen));
  } catch (error) {
    body.replaceChildren(h("p", {}, `${error.message} ${error.advice ?? ""}`));
  }
}

function draw(body, clients, models) {
  const { key } = settings();
  const shown = models.map((model) => valuesOf(model, key ? HIDDEN : "none"));
  const copied = models.map((model) => valuesOf(model, key || "none"));
  const part = (each) => h("div", { class: "part" },
    each.files ? h("p", {}, h("code", {}, each.files.at(-1))) : null,
    h("pre", { tabindex: "0" }, fill(each, shown)),
    action("copy", "Copy", (event) => copy(event.currentTarget, fill(each, copied))));
  body.replaceChildren(
    h("p", {}, "On the machine of the client, ", h("code", {}, "picospec connect NAME --write"), " puts this where it belongs, and ",
      h("code", {}, "picospec launch NAME"), " runs it without a change of its files."),
    ...(models.length > 1 ? [h("p", {}, "Clients begin with ", h("b", {}, models[0].id), "; those that can list several models have all of them.")] : []),
    ...clients.map(({ title, steps = [], parts }) => h("details", { class: "client", name: "client" },
      h("summary", {}, title), ...steps.map((step) => h("p", {}, step)), ...parts.map(part))));
}
