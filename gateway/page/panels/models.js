// Shows which models draft and judge, and lets one of several be chosen for a conversation.

import { $, h } from "../dom.js";
import { settings } from "../store.js";

export class Models {
  // on: {kept(), choose(name)}: the name of the conversation's model, and what a choice does.
  constructor(on) {
    this.on = on;
    this.served = []; // those that the key opens, as /status lists them
    this.select = h("select", { "aria-label": "Model", autocomplete: "off", onchange: () => on.choose(this.select.value) });
    this.judges = h("span");
  }

  // Returns the model that answers next; null where there is no choice. It is the conversation's, away
  // or not; if that has none, the one chosen last, or else the first, of those that are ready.
  get chosen() {
    const { served } = this;
    if (served.length < 2) return null;
    const named = (name) => served.find((each) => each.name === name);
    const isReady = (each) => each?.state === "ready";
    return named(this.on.kept()) ?? [named(settings().model), ...served].find(isReady) ?? served[0];
  }

  // state: what /status says. names: of the models that the key opens; null: of all.
  draw({ model, draft, models = [] }, names) {
    this.served = models.filter(({ name }) => !names || names.includes(name));
    const { chosen } = this;
    if (chosen) return this.drawChoice(chosen);
    const only = this.served[0] ?? { name: model?.name, draft };
    const large = h("b", {}, only.name ?? "");
    const shown = drafts(only) ? [h("b", {}, only.draft.model), " drafts · ", large, " judges"] : [large];
    if (only.name) $("models").replaceChildren(...shown); // while it is away, its name stays
  }

  // Shows the choice in elements that stay, so that an open list is not closed.
  drawChoice(model) {
    this.judges.replaceChildren(...(drafts(model) ? ["judges · ", h("b", {}, model.draft.model), " drafts"] : []));
    const listed = JSON.stringify(this.served.map((each) => [each.name, each.state]));
    if (listed !== this.listed) this.select.replaceChildren(...this.served.map(option));
    this.listed = listed;
    this.select.value = model.name;
    if (!this.select.isConnected) $("models").replaceChildren(this.select, this.judges);
  }
}

// Returns true if a draft model drafts for a model, or will once it is loaded.
function drafts({ draft }) {
  return draft?.model && draft.state !== "failed";
}

function option({ name, state }) {
  const isAway = state === "away";
  return h("option", { value: name, disabled: isAway }, isAway ? `${name} (away)` : name);
}
