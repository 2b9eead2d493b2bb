// Shows which models draft and judge, and lets one of several be chosen for a conversation.

import { $, h } from "../dom.js";
import { settings } from "../store.js";

export class Models {
  // on: {kept(), choose(name)}: the name of the conversation's model, and what a choice does.
  constructor(on) {
    this.on = on;
    this.served = []; // as /status lists them
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

  // state: what /status says.
  draw({ model, draft, models = [] }) {
    this.served = models;
    const { chosen } = this;
    if (chosen) return this.drawChoice(chosen);
    const large = h("b", {}, model?.name ?? "");
    const shown = draft && model ? [h("b", {}, draft.model), " drafts · ", large, " judges"] : [large];
    if (model) $("models").replaceChildren(...shown); // while it is away, its name stays
  }

  // Shows the choice in elements that stay, so that an open list is not closed.
  drawChoice({ name, draft }) {
    const drafts = draft && draft.state !== "failed";
    this.judges.replaceChildren(...(drafts ? ["judges · ", h("b", {}, draft.model), " drafts"] : []));
    const listed = JSON.stringify(this.served.map((each) => [each.name, each.state]));
    if (listed !== this.listed) this.select.replaceChildren(...this.served.map(option));
    this.listed = listed;
    this.select.value = name;
    if (!this.select.isConnected) $("models").replaceChildren(this.select, this.judges);
  }
}

function option({ name, state }) {
  const isAway = state === "away";
  return h("option", { value: name, disabled: isAway }, isAway ? `${name} (away)` : name);
}
