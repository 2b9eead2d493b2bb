// Shows the field for a question: Enter sends, Esc stops, and text files can be dropped or chosen.

import { $, h, icon } from "../dom.js";

const LARGEST_BYTES = 1024 * 1024;

export class Composer {
  // on: {ask(text, files), stop(), running()}.
  constructor(on) {
    this.on = on;
    this.files = [];
    this.field = $("question");
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.field.addEventListener("input", () => this.draw());
    $("stop").addEventListener("click", () => this.stop());
    $("attach").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", (event) => {
      this.take([...event.target.files]);
      event.target.value = "";
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) this.stop();
    });
    this.watchDrops();
    this.draw();
  }

  key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.send();
  }

  send() {
    const text = this.field.value.trim();
    if ((!text && !this.files.length) || this.on.running()) return;
    const { files } = this;
    this.files = [];
    this.field.value = "";
    this.draw();
    this.on.ask(text, files);
  }

  stop() {
    const running = this.on.running();
    this.on.stop();
    if (running) this.field.focus();
  }

  draw() {
    const running = this.on.running();
    if (running && document.activeElement === $("send")) this.field.focus();
    $("send").hidden = running;
    $("stop").hidden = !running;
    $("send").disabled = !this.field.value.trim() && !this.files.length;
    for (const chip of document.querySelectorAll(".chip")) chip.remove();
    $("attach").after(...this.files.map((file) => this.chip(file)));
  }

  chip(file) {
    const drop = () => {
      this.files = this.files.filter((other) => other !== file);
      this.draw();
      this.field.focus();
    };
    return h("span", { class: "chip" }, h("span", {}, file.name),
      h("button", { type: "button", class: "icon", "aria-label": `Remove ${file.name}`, onclick: drop }, icon("close")));
  }

  notice(text) {
    $("notice").textContent = text;
  }

  async take(files) {
    this.notice("");
    for (const file of files) {
      const text = file.size <= LARGEST_BYTES ? await file.text() : null;
      if (text === null || text.includes("\0")) this.notice(`${file.name} is no text file of at most 1 MiB.`);
      else this.files.push({ name: file.name, text });
    }
    this.draw();
    this.field.focus();
  }

  watchDrops() {
    const dropping = (on) => document.querySelector(".field").classList.toggle("dropping", on);
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      dropping(true);
    });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) dropping(false); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      dropping(false);
      this.take([...event.dataTransfer.files]);
    });
  }
}
