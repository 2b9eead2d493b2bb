// Shows the strip below an answer: legend, the two lanes, the passes and the figures.

import { action, h } from "../dom.js";
import { change, settings } from "../store.js";
import { legend } from "./origins.js";
import { Timeline } from "./timeline.js";

export class Strip {
  constructor() {
    this.timeline = new Timeline();
    this.top = h("div", { class: "strip-top" });
    this.ours = lane("ours", "With PicoSpec");
    this.theirs = lane("theirs", "Cloud alone (estimate)");
    this.lanes = h("div", { class: "lanes", hidden: true }, ...this.ours.parts, ...this.theirs.parts);
    this.figures = h("dl", { class: "figures" });
    this.element = h("section", { class: "strip", "aria-label": "How this answer came", hidden: true },
      this.top, this.lanes, this.timeline.element, this.figures);
  }

  draw(race) {
    if (!race.tokens) return;
    this.show(race.figures(), false);
  }

  // kept: the part of the race that a turn stores (Race.kept).
  finish(kept) {
    if (!kept?.tokens) return;
    this.show(kept, true);
    this.timeline.describe(kept.passes);
    const seen = new ResizeObserver(() => this.timeline.draw(kept.passes, kept.elapsed_s, true));
    seen.observe(this.timeline.canvas);
    const toggle = action("eye", "Who had it first", switchColours,
      { "aria-pressed": String(settings().colours), class: "action colours" });
    if (kept.speculates) this.top.append(toggle);
  }

  show(kept, over) {
    this.element.hidden = false;
    this.top.replaceChildren(kept.speculates ? legend(kept.counts) : h("span"));
    this.lanes.hidden = !kept.alone_s;
    this.timeline.element.hidden = !kept.passes.length;
    // The winner's lane is full, and the other's is what it had or would have by then.
    const theirs = over ? kept.elapsed_s / kept.alone_s : kept.cloud_tokens / kept.tokens;
    this.ours.set(Math.min(1, 1 / theirs), over ? `took ${kept.elapsed_s.toFixed(1)} s` : `${kept.tokens} tokens`);
    this.theirs.set(Math.min(1, theirs), over ? `would take ${kept.alone_s?.toFixed(1)} s` : `${kept.cloud_tokens} tokens`);
    this.timeline.draw(kept.passes, kept.elapsed_s, over);
    this.figures.replaceChildren(...figures(kept, over).map(([name, value, lead]) =>
      h("div", lead ? { class: "lead" } : {}, h("dt", {}, name), h("dd", {}, value))));
  }
}

function lane(name, label) {
  const bar = h("i");
  const output = h("output", { "aria-live": "off" });
  const parts = [h("span", {}, label), h("div", { class: `lane ${name}` }, bar), output];
  return {
    parts,
    set(share, text) {
      bar.style.transform = `scaleX(${share})`;
      output.textContent = text;
    },
  };
}

function figures(kept, over) {
  const found = [["tokens/s", kept.tokens_per_s?.toFixed(1), true]];
  if (over && kept.alone_s) found.push(["as fast as the cloud alone", `${(kept.alone_s / kept.elapsed_s).toFixed(1)} ×`, true]);
  found.push(["tokens", kept.tokens]);
  if (kept.speculates) {
    found.push(["of drafts accepted", kept.judged ? `${Math.round((100 * kept.accepted) / kept.judged)} %` : null]);
    found.push(["tokens a pass", kept.pass_count ? (kept.tokens / kept.pass_count).toFixed(1) : null]);
    found.push(["round trip", kept.rtt_ms === null ? null : `${kept.rtt_ms.toFixed(kept.rtt_ms < 10 ? 1 : 0)} ms`]);
    found.push(["bytes a token", kept.bytes ? (kept.bytes / kept.tokens).toFixed(1) : null]);
  }
  return found.filter(([, value]) => value !== null && value !== undefined);
}

function switchColours() {
  change({ colours: !settings().colours });
  showColours();
}

// Shows or hides the colours in all answers, depending on the settings.
export function showColours() {
  const on = settings().colours;
  document.getElementById("conversation").classList.toggle("coloured", on);
  for (const toggle of document.querySelectorAll(".action.colours")) toggle.setAttribute("aria-pressed", String(on));
}
