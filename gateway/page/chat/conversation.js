// Shows the current conversation: its turns, and asking, editing and regenerating in it.

import { $, action, announce, h } from "../dom.js";
import { Full, begin, change, load, save } from "../store.js";
import { AnswerView } from "./answer.js";
import { Asking } from "./asking.js";
import { prove } from "../race/prove.js";
import { welcome } from "./welcome.js";

export class ConversationView {
  // page: {isEdge(), model(), changed(), openSettings()}, provided by the rest of the page.
  constructor(page) {
    this.page = page;
    this.element = $("conversation");
    this.turns = h("div");
    this.notes = h("div"); // messages of the page below the turns, until they are drawn again
    const column = h("div", { class: "turns" }, this.turns, this.notes);
    this.element.append(column);
    this.asking = null;
    this.proof = null;
    this.pinned = true; // true while the reader is at the end, and wants to stay there
    this.element.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.element;
      this.pinned = scrollHeight - scrollTop - clientHeight < 80;
    });
    new ResizeObserver(() => { if (this.pinned && !this.isEmpty) this.toEnd(); }).observe(column);
    this.open(null);
  }

  // Shows a conversation, or begins one. A conversation that is shown already stays unchanged.
  open(id) {
    if (id && id === this.id) return;
    this.stop();
    this.kept = (id && load(id)) || begin();
    const { turns } = this.kept;
    const running = turns.at(-1)?.state === "running" ? turns.pop() : null;
    this.draw(0);
    if (running) this.run(Asking.joined(running), this.kept, turns.length);
    else this.page.changed();
  }

  get id() {
    return this.kept.id;
  }

  // Has another model answer from now on; the next conversation begins with it, too.
  choose(model) {
    this.kept.model = model;
    change({ model });
    this.save(this.kept);
    this.page.changed();
  }

  // Draws the turns from the i-th on; the turns before it stay unchanged.
  draw(i) {
    const { turns } = this.kept;
    this.notes.replaceChildren();
    const shown = this.turns.children;
    const keep = this.isEmpty ? 0 : Math.min(i, turns.length);
    while (shown.length > keep) this.turns.lastChild.remove();
    this.isEmpty = !turns.length;
    if (this.isEmpty) this.turns.append(welcome((text) => this.ask(text), this.page.isEdge()));
    else for (const [n, turn] of turns.entries()) if (n >= shown.length) this.turns.append(this.view(turn, n));
    if (this.isEmpty) this.element.scrollTop = 0;
    else this.toEnd();
  }

  toEnd() {
    this.pinned = true;
    this.element.scrollTop = this.element.scrollHeight;
  }

  view(turn, i) {
    if (turn.role === "assistant") return this.answerView(turn, i).show().element;
    return turn.role === "tool" ? toolView(turn) : this.questionView(turn, i);
  }

  answerView(turn, i) {
    const view = new AnswerView(turn, {
      again: () => this.answerFrom(i),
      prove: this.page.isEdge() ? () => this.prove(view, i) : null,
      settings: this.page.openSettings,
      result: (call, content) => this.result(turn, i, { role: "tool", call, content }),
    });
    return view;
  }

  prove(view, i) {
    this.proof?.stop();
    this.proof = prove(view, this.kept.turns.slice(0, i));
  }

  // Adds a tool's result to the i-th turn, and asks once each of the turn's calls has a result.
  result({ calls }, i, turn) {
    const { turns } = this.kept;
    const given = turns.slice(i + 1);
    if (given.some(({ role, call }) => role !== "tool" || call === turn.call)) return;
    if (given.length + 1 === calls.length) return this.add(turn);
    turns.push(turn);
    this.draw(turns.length);
    this.save(this.kept);
  }

  questionView(turn, i) {
    const said = h("div", { class: "said" }, turn.content);
    const files = (turn.files ?? []).map(({ name, text }) =>
      h("details", { class: "file" }, h("summary", {}, name), h("pre", { tabindex: "0" }, text)));
    const edit = action("edit", "Edit", () => this.edit(element, turn, i));
    const element = h("article", { class: "turn user" }, h("h2", {}, "You"), said, ...files, h("div", { class: "actions" }, edit));
    return element;
  }

  edit(element, turn, i) {
    const field = h("textarea", { "aria-label": "Edit the question", value: turn.content });
    const close = () => {
      element.replaceWith(this.questionView(turn, i));
    };
    const send = () => {
      if (!field.value.trim()) return;
      this.stop();
      this.kept.turns.splice(i);
      this.draw(i);
      this.add({ ...turn, content: field.value });
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.preventDefault();
        close();
      }
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      send();
    });
    element.replaceChildren(h("div", { class: "said-edit" }, field, h("div", { class: "row" },
      h("button", { type: "button", class: "plain", onclick: close }, "Cancel"),
      h("button", { type: "button", class: "solid", onclick: send }, "Send again"))));
    field.focus();
  }

  ask(content, files = []) {
    return this.add({ role: "user", content, ...(files.length ? { files } : {}) });
  }

  // Adds a turn that needs an answer, and requests the answer.
  add(turn) {
    this.stop();
    this.kept.turns.push(turn);
    return this.answerFrom(this.kept.turns.length);
  }

  // Answers the turns before the i-th; the answer replaces the i-th turn and all after it.
  async answerFrom(i) {
    this.stop();
    const { kept } = this;
    kept.turns.splice(i);
    kept.model = this.page.model() ?? kept.model;
    this.draw(i);
    if (document.activeElement === document.body) this.element.focus();
    this.save(kept);
    try {
      return this.run(new Asking(kept.turns, this.page.model()), kept, i);
    } catch (error) {
      return this.refused(error, i);
    }
  }

  async run(asking, kept, i) {
    this.asking = asking;
    kept.turns.push(asking.turn);
    const view = this.answerView(asking.turn, i);
    this.turns.append(view.element);
    this.toEnd();
    this.page.changed();
    announce("The answer begins.");
    const drawn = view.follow(asking);
    await asking.run(() => this.save(kept));
    this.save(kept);
    if (this.asking === asking) this.asking = null;
    this.page.changed();
    await drawn;
    view.say();
  }

  refused(error, i) {
    const turn = { role: "assistant", content: "", state: "failed",
      error: { message: error.message, advice: error.advice ?? "", code: error.code ?? "" } };
    this.notes.append(this.answerView(turn, i).show().element);
  }

  // Stops the running answer and the proof, whose timing the next request would distort.
  stop() {
    this.asking?.stop();
    this.asking = null;
    this.proof?.stop();
    this.proof = null;
  }

  save(kept) {
    try {
      save(kept);
    } catch (error) {
      if (!(error instanceof Full)) throw error;
      this.notes.replaceChildren(h("p", { class: "failure", role: "alert" }, error.message));
    }
  }
}

function toolView(turn) {
  return h("article", { class: "turn" }, h("h2", {}, "Result of the tool"), h("pre", { class: "said", tabindex: "0" }, turn.content));
}
