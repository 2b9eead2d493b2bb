// Lists the conversations, to find, open, rename, delete or begin one.

import { $, announce, h, icon } from "../dom.js";
import { list, remove, rename, search } from "../store.js";

export class Sidebar {
  // on: {open(id or null), current()}.
  constructor(on) {
    this.on = on;
    this.element = $("sidebar");
    this.renaming = null; // field of the title that is being edited
    $("search").addEventListener("input", () => {
      this.draw();
      announce(`${$("conversations").querySelectorAll(".entry").length} found.`);
    });
    $("begin").addEventListener("click", () => this.choose(null));
    $("menu").addEventListener("click", () => this.show(!this.element.classList.contains("shown")));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.element.classList.contains("shown")) return;
      event.preventDefault(); // Esc closes the list, and stops no answer
      this.show(false);
    });
    document.addEventListener("click", (event) => {
      if (!this.element.contains(event.target) && !$("menu").contains(event.target)) this.show(false);
    });
  }

  // Opens or closes the list on narrow screens, where it covers the page.
  show(shown) {
    if (this.element.classList.contains("shown") === shown) return;
    this.element.classList.toggle("shown", shown);
    $("menu").setAttribute("aria-expanded", String(shown));
    (shown ? $("begin") : $("menu")).focus();
  }

  choose(id) {
    this.show(false);
    this.on.open(id);
    $("question").focus();
  }

  // Draws the list; while a title is being edited, drawing waits for the end of that.
  draw() {
    if (this.renaming) return;
    $("search").hidden = !list().length;
    const found = search($("search").value).map((kept) => this.entry(kept));
    const none = $("search").value.trim() && !found.length ? [h("li", { class: "none" }, "Nothing is found.")] : [];
    $("conversations").replaceChildren(...found, ...none);
  }

  entry({ id, title }) {
    const current = id === this.on.current();
    const open = h("button", { type: "button", class: "open", title, "aria-current": current ? "true" : null, onclick: () => this.choose(id) }, title);
    const item = h("li", { class: current ? "entry current" : "entry" }, open,
      h("button", { type: "button", class: "icon", "aria-label": `Rename ${title}`, onclick: () => this.rename(item, id, title) }, icon("edit")),
      h("button", { type: "button", class: "icon", "aria-label": `Delete ${title}`, onclick: () => this.remove(id, title) }, icon("bin")));
    return item;
  }

  rename(item, id, title) {
    const field = h("input", { value: title, "aria-label": "Name of the conversation", maxlength: "120" });
    const close = (keep) => {
      if (this.renaming !== field) return;
      this.renaming = null;
      if (keep && field.value.trim()) rename(id, field.value.trim());
      this.draw();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") close(true);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      close(false);
    });
    field.addEventListener("blur", () => close(true));
    this.renaming = field;
    item.replaceChildren(field);
    field.select();
  }

  remove(id, title) {
    if (!confirm(`Delete “${title}”? It is kept nowhere else.`)) return;
    remove(id);
    announce("The conversation is deleted.");
    if (id === this.on.current()) this.on.open(null);
    else this.draw();
  }
}
