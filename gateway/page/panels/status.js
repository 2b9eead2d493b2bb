// Shows the state of this service: models, their drafts, verifiers, the last answers, sessions, versions.

import { Failure, get } from "../api.js";
import { $, h } from "../dom.js";
import { panel } from "./panel.js";

const EVERY_MS = 10_000;
const WITHOUT_DRAFTS = {
  always: "the large model goes on at once",
  auto: "the large model goes on, or waits for drafts where that saves time",
  never: "the large model waits for drafts",
};

const DRAFTS = {
  asleep: "asleep until it is asked for",
  loading: "being loaded",
  failed: "which could not be loaded: they come from the text alone",
};
const REASONS = {
  prefix: "it has read the beginning of the prompt",
  near: "it answers soonest",
  only: "it was the only one ready",
};

export class Service {
  // models: shows the models at the top of the page. learned: called once the kind of the service is known.
  constructor(models, learned) {
    this.models = models;
    this.learned = learned;
    this.state = null;
    this.error = null;
    this.facts = h("div");
    this.served = h("div");
    this.verifiers = h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Verifiers" });
    this.placed = h("div");
  }

  // Returns true for an edge, and until the service has reported its kind.
  get isEdge() {
    return this.state?.service !== "verifier";
  }

  watch() {
    this.look();
    setInterval(() => { if (!document.hidden) this.look(); }, EVERY_MS);
  }

  // Requests the state of the service, and shows it.
  async look() {
    const before = this.state?.service;
    try {
      const state = await get("/status");
      this.opened = several(state.models) ? await opened() : null;
      [this.state, this.error] = [state, null];
    } catch (error) {
      this.error = error instanceof Failure ? error : new Failure(error.message, "");
    }
    this.draw();
    if (this.state?.service !== before) this.learned();
  }

  // Draws what is known by now, for the conversation that is shown.
  draw() {
    if (!this.state && !this.error) return;
    if (this.state) this.models.draw(this.state, this.opened);
    const trouble = this.trouble();
    const well = this.state && !trouble;
    $("health").className = `dot ${well ? "good" : "bad"}`;
    $("open-status").setAttribute("aria-label", `Status: ${well ? "ready" : "not ready"}`);
    if ($("away").textContent !== trouble) $("away").textContent = trouble;
    if ($("status").open) this.show();
  }

  // Returns why no question can be answered now, in a sentence or two; "" if one can.
  trouble() {
    const { error, state } = this;
    if (error) return `${error.message} ${error.advice}`;
    if (state.status === "draining") return "The service is stopping, and takes no more questions.";
    const { chosen, served } = this.models;
    if (chosen ? chosen.state === "ready" : state.status === "ok") return "";
    if (chosen && served.some((each) => each.state === "ready")) {
      return `${chosen.name} is away: none of its verifiers can be reached. Choose another model at the top, or wait: this line goes once it is back.`;
    }
    const words = `The large model cannot be reached now (${state.error ?? "no reason is known"}).`;
    return this.isEdge ? `${words} This page looks for it all the time: this line goes once it is back.` : words;
  }

  async open() {
    this.show();
    panel("status", "Status", this.facts, this.served, this.verifiers, this.placed,
      h("p", { class: "links" }, link("/docs", "The API"), link("/metrics", "Metrics"), link("/health", "Health")));
    await this.look();
  }

  // Shows the known state in elements that stay, so that none loses the focus.
  show() {
    const { error, state } = this;
    this.facts.replaceChildren(...[
      error && h("div", { class: "failure" }, h("p", {}, error.message), h("p", {}, error.advice)),
      state && facts(state),
    ].filter(Boolean));
    this.served.hidden = !several(state?.models);
    if (!this.served.hidden) this.served.replaceChildren(h("h3", {}, "Models"), served(state));
    this.verifiers.hidden = !state?.verifiers;
    if (state?.verifiers) this.verifiers.replaceChildren(verifiers(state.verifiers));
    this.placed.hidden = !several(state?.verifiers) || !state.placed?.length;
    if (!this.placed.hidden) this.placed.replaceChildren(h("h3", {}, "Where the last answers began"), placed(state));
  }
}

// Returns the names of the models that the key opens; null if none can be reached.
async function opened() {
  const { data } = await get("/v1/models", { also: [503] });
  return data?.map(({ id }) => id) ?? null;
}

function link(href, words) {
  return h("a", { href, target: "_blank", rel: "noopener" }, words);
}

function several(list) {
  return list?.length > 1;
}

// Returns a list of names with what is known of each.
function listed(known) {
  return h("dl", { class: "facts" }, ...known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

// Says who answers while no verifier can be reached, by the edge's setting.
const FALLBACKS = {
  none: () => "nobody answers",
  draft: () => "the draft model answers alone",
  server: (model) => `another server answers: ${model}`,
  "server,draft": (model) => `another server answers: ${model}; if it cannot, the draft model alone`,
};

function facts(state) {
  const { service, model, draft, version, protocol, uptime_s: uptime, requests } = state;
  const many = several(state.models);
  const own = state.models?.[0]?.draft;
  const known = [
    ["This is", service === "edge" ? "an edge" : "a verifier"],
    ["State", state.status === "ok" ? "ready" : `not ready: ${state.error ?? "no reason is known"}`],
    ["Large model", many ? null : model ? `${model.name}, ${model.context_tokens} tokens of context` : "not known"],
    ["Draft model", many || service !== "edge" ? null : draft ? `${draft.model}, ${draft.slots} answers at a time${own?.model ? `, ${condition(own)}` : ""}` : "none: drafts come from the text alone"],
    ["Vocabularies", many ? null : draft?.vocabularies],
    ["Judging", state.judge],
    ["Without drafts", WITHOUT_DRAFTS[state.fill]],
    ["Without a verifier", FALLBACKS[state.fallback]?.(state.fallback_server?.model)],
    ["Prompt lookup", state.judge && (state.lookup ? "on: repeated text is drafted" : "off")],
    ["Answers running", requests],
    ["Sessions", state.sessions && `${state.sessions.running} of ${state.sessions.limit}`],
    ["Version", `${version}, protocol ${protocol}, up for ${duration(uptime)}`],
  ].filter(([, value]) => value !== null && value !== undefined);
  return listed(known);
}

function verifiers(list) {
  const columns = ["Verifier", "Ready", "Round trip", "Load", "Sessions", "Drafts bring", "Version"];
  const rows = list.map((each) => h("tr", {},
    h("th", { scope: "row" }, each.url, each.in_use ? h("small", {}, " in use") : null),
    ...[each.ready ? "yes" : "no", each.rtt_ms === null ? "–" : `${each.rtt_ms} ms`, each.load ?? "–", each.sessions ?? "–", bring(each.speedups?.draft), each.version ?? "–"]
      .map((value) => h("td", {}, String(value)))));
  return h("table", {},
    h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...rows));
}

// Returns what is to be known of each of several models.
function served(state) {
  return listed(state.models.map(({ name, state: now, context_tokens: context, draft, verifiers: labels }) => [name, [
    now === "away" ? "away: no verifier can be reached" : now,
    context && `${context} tokens of context`,
    draft?.model ? `drafts by ${draft.model}, ${condition(draft)}` : draft ? "a draft model is chosen at the first answer" : "drafts from the text alone",
    labels.length && `at ${labels.map((label) => place(label, state)).join(" and ")}`,
  ].filter(Boolean).join("; ")]));
}

// Returns when the last answers began, and where and why there.
function placed(state) {
  return listed(state.placed.map(({ model, verifier, reason, seconds_ago: ago }) =>
    [`${duration(ago)} ago`, `${model} at ${place(verifier, state)}, because ${REASONS[reason] ?? reason}`]));
}

// Returns the address of a verifier, which /status names by a label; the label if there is none.
function place(label, { verifiers: known }) {
  return known?.find((each) => each.verifier === label)?.url.replace(/^https?:\/\//, "") ?? label;
}

// Returns what a draft model does now.
function condition({ state, bytes }) {
  if (state !== "loaded") return DRAFTS[state] ?? state;
  return bytes < 1e9 ? `in memory, ${Math.round(bytes / 1e6)} MB` : `in memory, ${(bytes / 1e9).toFixed(1)} GB`;
}

// Returns what draft tokens bring at a verifier, as measured by letting all answers pause.
function bring(speedup) {
  return speedup?.probes ? `${speedup.speedup.toFixed(2)} ×` : "–";
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
