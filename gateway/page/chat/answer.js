// Shows one answer: its reasoning, its text as Markdown, its calls, its race and its buttons.
//
// While an answer runs, each frame renders at most once, and a bounded amount of text. If rendering
// takes long, fewer frames do; so the page stays responsive however fast the tokens come. Letters
// that have come together are shown one after another, unless the reader wants it otherwise.

import { action, announce, copy, h } from "../dom.js";
import { settings } from "../store.js";
import { Growing } from "./growing.js";
import { Runs } from "./colouring.js";
import { watchCode } from "./syntax.js";
import { Ahead, CloudCursor } from "../race/overlay.js";
import { Strip } from "../race/strip.js";

const CHARACTERS_A_FRAME = 3000;
const STRIP_EVERY_MS = 120;
const SHARE_OF_TIME = 4; // a rendering of 10 ms is followed by at least 40 ms without one
const LONG = 8000; // hidden blocks of an answer with more characters are not laid out
const WEIGHT = 0.25; // of the latest interval between bursts in their running mean
const LONGEST_MS = 1000; // a longer interval counts as this: a burst after an outage is not held long
const MOST_HELD = 500; // so many letters at most stand in the chain's tone until they are due

export class AnswerView {
  // on: {again, prove, settings, result}, called by the buttons.
  constructor(turn, on) {
    this.turn = turn;
    this.on = on;
    this.thoughts = h("details", { class: "thoughts", hidden: true }, h("summary", {}, "Reasoning"), h("div", {}, ""));
    this.text = h("div", { class: "text" });
    this.calls = h("div");
    this.after = h("div");
    this.strip = new Strip();
    this.element = h("article", { class: "turn answer" }, h("h2", {}, ["PicoSpec", turn.request?.model].filter(Boolean).join(" · ")),
      this.thoughts, this.text, this.calls, this.strip.element, this.after);
    this.shown = 0;
    this.next = 0;
    this.stripAt = 0;
  }

  // Shows a stored answer; a long one is drawn over several frames.
  show() {
    const kept = this.turn.race;
    this.growing = new Growing(this.text, new Runs(kept?.runs));
    this.finished = () => this.end();
    this.frame();
    return this;
  }

  // Shows a running answer; resolves once all of it is drawn.
  follow(asking) {
    this.asking = asking;
    this.steady = settings().steady && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.paces = { reasoning: new Pace(), content: new Pace() };
    this.growing = new Growing(this.text, asking.race.runs);
    this.ahead = new Ahead();
    this.cursor = new CloudCursor(this.text, this.growing);
    this.element.classList.add("live");
    this.element.setAttribute("aria-busy", "true");
    this.after.replaceChildren(h("p", { class: "state waiting" }, "Waiting for the first token …"));
    return new Promise((resolve) => {
      this.finished = () => {
        this.end();
        resolve();
      };
      this.frame();
    });
  }

  get running() {
    return this.turn.state === "running";
  }

  // Draws what has arrived since the last frame, and requests the next frame.
  frame(now = performance.now()) {
    const complete = this.shown >= this.turn.content.length && !this.running;
    if (complete) return this.finished();
    if (now >= this.next) this.draw(now);
    requestAnimationFrame((at) => this.frame(at));
  }

  draw(now) {
    const began = performance.now();
    const { content } = this.turn;
    const due = this.due("content", now);
    if (this.shown < due) {
      this.shown = Math.min(due, this.shown + CHARACTERS_A_FRAME);
      this.text.classList.toggle("long", this.shown > LONG);
      this.growing.update(content.slice(0, this.shown));
    }
    if (this.asking) this.drawLive(now);
    this.next = now + SHARE_OF_TIME * Math.max(0, performance.now() - began - 2);
  }

  // Returns how many letters of the turn's reasoning or content are to be shown by now.
  due(part, now) {
    const text = this.turn[part];
    return this.running && this.steady ? this.paces[part].due(text, now) : text.length;
  }

  drawLive(now) {
    const { race } = this.asking;
    const { reasoning, content } = this.turn;
    if (this.shown || reasoning || this.turn.calls.length) this.after.replaceChildren();
    const thought = this.due("reasoning", now);
    this.showReasoning(thought);
    const [place, text, shown] = reasoning && !content ? [this.thoughts.lastChild, reasoning, thought] : [this.growing.end(), content, this.shown];
    this.ahead.draw(place, race, text.slice(shown, shown + MOST_HELD));
    if (now < this.stripAt) return;
    this.stripAt = now + STRIP_EVERY_MS;
    this.showCalls();
    this.cursor.draw(race, now);
    this.strip.draw(race);
  }

  showReasoning(end) {
    const reasoning = (this.turn.reasoning ?? "").slice(0, end);
    if (this.thoughts.hidden && reasoning && this.asking) this.thoughts.open = true;
    this.thoughts.hidden = !reasoning;
    const text = this.thoughts.lastChild.firstChild;
    if (text.length < reasoning.length) text.appendData(reasoning.slice(text.length));
  }

  showCalls() {
    if (this.calls.childElementCount === 0 && !this.turn.calls?.length) return;
    this.calls.replaceChildren(...this.turn.calls.map((call) => this.call(call)));
  }

  call({ id, name, text }) {
    const card = h("div", { class: "call" }, h("p", {}, "Calls ", h("b", {}, name ?? "a tool"), " with"), h("pre", { tabindex: "0" }, pretty(text)));
    if (this.running || !this.on.result) return card;
    const field = h("textarea", { rows: "2", "aria-label": `Result of ${name}` });
    const send = h("button", { type: "button", class: "plain", onclick: () => this.on.result(id, field.value) }, "Send the result");
    card.append(h("details", {}, h("summary", {}, "Answer for the tool"), h("div", {}, field, send)));
    return card;
  }

  // Draws the parts that stay below a finished answer.
  end() {
    const { turn } = this;
    this.ahead?.remove();
    this.cursor?.remove();
    this.text.querySelectorAll("pre > code").forEach(watchCode);
    this.asking = null;
    this.element.classList.remove("live");
    this.element.removeAttribute("aria-busy");
    this.showReasoning();
    this.thoughts.open = false;
    this.showCalls();
    this.strip.finish(turn.race);
    this.after.replaceChildren(...this.ending(), this.actions());
  }

  ending() {
    const { state, finish, error, fallback, server } = this.turn;
    const parts = [];
    if (fallback) parts.push(h("p", { class: "state" }, `The large model was away: the draft model ${fallback} has answered alone.`));
    if (server) parts.push(h("p", { class: "state" }, `The large model was away: another server has answered, with ${server}.`));
    if (state === "stopped") parts.push(h("p", { class: "state" }, "Stopped."));
    if (finish === "length") parts.push(h("p", { class: "state" }, "The limit of tokens ended this answer."));
    if (error) parts.push(this.failure(error));
    return parts;
  }

  failure({ message, advice, code }) {
    const toSettings = code === "invalid_api_key" || code === "settings";
    const button = toSettings
      ? h("button", { type: "button", class: "plain", onclick: this.on.settings }, "Open the settings")
      : h("button", { type: "button", class: "plain", onclick: this.on.again }, "Try again");
    return h("div", { class: "failure", role: "alert" }, h("p", {}, message), h("p", {}, advice), h("div", { class: "row" }, button));
  }

  actions() {
    const { turn } = this;
    const copying = action("copy", "Copy", () => copy(copying, turn.content));
    const parts = [copying, action("again", "Again", this.on.again, { "aria-label": "Answer again", hidden: !this.on.again })];
    if (turn.state === "done" && turn.content && !turn.fallback && !turn.server && this.on.prove) {
      parts.push(action("scales", "Prove it", this.on.prove, { class: "action prove" }));
    }
    return h("div", { class: "actions" }, ...parts);
  }

  say() {
    const { state, race } = this.turn;
    const words = { done: "The answer is complete.", stopped: "The answer was stopped.", failed: "The answer failed." };
    announce(`${words[state]} ${race?.tokens ? `${race.tokens} tokens.` : ""}`);
  }
}

// Shows the text of a burst over the time until the next burst is expected, which is the running
// mean of the intervals before. The next burst shows what is left of it at once. Has no clock.
export class Pace {
  constructor() {
    this.from = 0; // the latest burst is text[from .. until], and came at the time `at`
    this.until = 0;
    this.at = 0;
    this.every = 0; // the running mean; 0 while it is unknown, and then a burst is shown at once
  }

  // Returns how many letters of a text, of which more has come or not, are to be shown by now.
  due(text, now) {
    if (text.length > this.until) this.begin(text.length, now);
    const share = (now - this.at) / this.every;
    if (!(share < 1)) return this.until;
    const end = Math.min(this.until, this.from + 1 + Math.floor(share * (this.until - this.from)));
    return text.codePointAt(end - 1) > 0xffff ? end + 1 : end;
  }

  begin(length, now) {
    const interval = Math.min(now - this.at, LONGEST_MS);
    if (this.until) this.every += (this.every ? WEIGHT : 1) * (interval - this.every);
    [this.from, this.until, this.at] = [this.until, length, now];
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
