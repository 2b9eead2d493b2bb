// Shows the state of this service: models, vocabularies, verifiers, sessions, versions.

import { Failure, get } from "../api.js";
import { $, h } from "../dom.js";
import { panel } from "./panel.js";

const EVERY_MS = 10_000;
const WITHOUT_DRAFTS = {
  always: "the large model goes on at once",
  auto: "the large model goes on, or waits for drafts where that saves time",
  never: "the large model waits for drafts",
};

export class Service {
  // learned: called once the kind of the service is known.
  constructor(learned) {
    this.learned = learned;
    this.state = null;
    this.error = null;
    this.facts = h("div");
    this.verifiers = h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Verifiers" });
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
      this.state = await get("/status");
      this.error = null;
    } catch (error) {
      this.error = error instanceof Failure ? error : new Failure(error.message, "");
    }
    this.draw();
    if (this.state?.service !== before) this.learned();
  }

  draw() {
    const well = !this.error && this.state?.status === "ok";
    $("health").className = `dot ${well ? "good" : "bad"}`;
    $("open-status").setAttribute("aria-label", `Status: ${well ? "ready" : "not ready"}`);
    const { model, draft } = this.state ?? {};
    const large = h("b", {}, model?.name ?? "");
    const shown = draft && model ? [h("b", {}, draft.model), " drafts · ", large, " judges"] : [large];
    if (model) $("models").replaceChildren(...shown); // while it is away, its name stays
    const trouble = this.trouble();
    if ($("away").textContent !== trouble) $("away").textContent = trouble;
    if ($("status").open) this.show();
  }

  // Returns why no question can be answered now, in a sentence or two; "" if one can.
  trouble() {
    const { error, state } = this;
    if (error) return `${error.message} ${error.advice}`;
    if (!state || state.status === "ok") return "";
    if (state.status === "draining") return "The service is stopping, and takes no more questions.";
    const words = `The large model cannot be reached now (${state.error ?? "no reason is known"}).`;
    return this.isEdge ? `${words} This page looks for it all the time: this line goes once it is back.` : words;
  }

  async open() {
    this.show();
    panel("status", "Status", this.facts, this.verifiers,
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
    this.verifiers.hidden = !state?.verifiers;
    if (state?.verifiers) this.verifiers.replaceChildren(verifiers(state.verifiers));
  }
}

function link(href, words) {
  return h("a", { href, target: "_blank", rel: "noopener" }, words);
}

function facts(state) {
  const { service, model, draft, version, protocol, uptime_s: uptime, requests } = state;
  const known = [
    ["This is", service === "edge" ? "an edge" : "a verifier"],
    ["State", state.status === "ok" ? "ready" : `not ready: ${state.error ?? "no reason is known"}`],
    ["Large model", model ? `${model.name}, ${model.context_tokens} tokens of context` : "not known"],
    ["Draft model", service !== "edge" ? null : draft ? `${draft.model}, ${draft.slots} answers at a time` : "none: drafts come from the text alone"],
    ["Vocabularies", draft?.vocabularies],
    ["Judging", state.judge],
    ["Without drafts", WITHOUT_DRAFTS[state.fill]],
    ["Prompt lookup", state.judge && (state.lookup ? "on: repeated text is drafted" : "off")],
    ["Answers running", requests],
    ["Sessions", state.sessions && `${state.sessions.running} of ${state.sessions.limit}`],
    ["Version", `${version}, protocol ${protocol}, up for ${duration(uptime)}`],
  ].filter(([, value]) => value !== null && value !== undefined);
  return h("dl", { class: "facts" }, ...known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

function verifiers(list) {
  const columns = ["Verifier", "Ready", "Round trip", "Load", "Sessions", "Drafts bring", "Version"];
  const rows = list.map((each) => h("tr", {},
    h("th", { scope: "row" }, each.url, each.in_use ? h("small", {}, " in use") : null),
    ...[each.ready ? "yes" : "no", each.rtt_ms === null ? "–" : `${each.rtt_ms} ms`, each.load ?? "–", each.sessions ?? "–", bring(each.gains?.draft), each.version ?? "–"]
      .map((value) => h("td", {}, String(value)))));
  return h("table", {},
    h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...rows));
}

// Returns what draft tokens bring at a verifier, as measured by letting all answers rest.
function bring(gain) {
  return gain?.trials ? `${gain.worth.toFixed(2)} ×` : "–";
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
