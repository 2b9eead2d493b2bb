// What this service is and how it is: models, vocabularies, verifiers, sessions, versions.

import { Failure, get } from "../api.js";
import { $, h } from "../dom.js";
import { panel } from "./panel.js";

const EVERY_MS = 10_000;
const RELATIONS = { same: "the same", subset: "one has part of the other’s", foreign: "different: drafts are translated" };

export class Service {
  // learned: called when it is known what the service is.
  constructor(learned) {
    this.learned = learned;
    this.state = null;
    this.error = null;
  }

  get speculates() {
    return this.state?.role === "edge";
  }

  watch() {
    this.look();
    setInterval(() => { if (!document.hidden) this.look(); }, EVERY_MS);
  }

  // Asks how the service is, and shows it.
  async look() {
    const before = this.state?.role;
    try {
      this.state = await get("/status");
      this.error = null;
    } catch (error) {
      this.error = error instanceof Failure ? error : new Failure(error.message, "");
    }
    this.draw();
    if (this.state?.role !== before) this.learned();
  }

  draw() {
    const well = !this.error && this.state?.ready !== false;
    $("health").className = `dot ${well ? "good" : "bad"}`;
    $("open-status").setAttribute("aria-label", `Status: ${well ? "ready" : "not ready"}`);
    const { model, draft } = this.state ?? {};
    const shown = draft?.model ? [h("b", {}, draft.model), " drafts · ", h("b", {}, model), " judges"] : [h("b", {}, model ?? "")];
    $("models").replaceChildren(...shown);
    if ($("status").open) this.show();
  }

  async open() {
    this.show();
    await this.look();
  }

  show() {
    panel("status", "Status",
      this.error ? h("div", { class: "failure" }, h("p", {}, this.error.message), h("p", {}, this.error.advice)) : null,
      this.state ? facts(this.state) : null,
      h("p", { class: "links" }, link("/docs", "The API"), link("/metrics", "Metrics"), link("/health", "Health")));
  }
}

function link(href, words) {
  return h("a", { href, target: "_blank", rel: "noopener" }, words);
}

function facts(state) {
  const list = Object.entries(state).map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)]);
  return h("dl", { class: "facts" }, ...list.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
