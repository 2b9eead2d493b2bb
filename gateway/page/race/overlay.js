// Draws over a running answer: the chain that runs ahead of it, and the cloud's cursor.

import { h } from "../dom.js";

const BROKEN_MS = 900;

// Shows what is held of the text and then the unconfirmed draft tokens, in a lighter tone. If the chain
// proves wrong, the wrong part is struck through for a moment. Screen readers do not read it.
export class Ahead {
  constructor() {
    this.chain = h("span", { class: "ahead" });
    this.broken = h("span", { class: "broken" });
    this.held = h("span", { class: "held" });
    this.element = h("span", { "aria-hidden": "true" }, this.held, this.broken, this.chain);
    this.breaks = 0;
  }

  // place: element at whose end the text continues. held: text that is confirmed and not shown yet;
  // a reader sees it only if the chain is seen, of which it was a part.
  draw(place, race, held) {
    if (this.element.parentNode !== place || place.lastChild !== this.element) place.append(this.element);
    if (this.chain.textContent !== race.chain) this.chain.textContent = race.chain;
    this.held.textContent = race.speculates ? held : "";
    if (race.breaks === this.breaks) return;
    this.breaks = race.breaks;
    this.broken.textContent = race.broken;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.broken.textContent = ""; }, BROKEN_MS);
  }

  remove() {
    clearTimeout(this.timer);
    this.element.remove();
  }
}

// Marks the token that the cloud alone would have reached by now.
export class CloudCursor {
  constructor(text, growing) {
    this.growing = growing;
    this.element = h("span", { class: "cloud-cursor", "aria-hidden": "true", hidden: true }, h("span", {}, "cloud alone"));
    text.append(this.element);
    this.text = text;
    this.range = document.createRange();
  }

  draw(race, now) {
    const place = this.growing.find(race.offsetOf(race.cloudTokens(now)));
    this.element.hidden = !place || !race.cloudTokens(now);
    if (this.element.hidden) return;
    if (this.text.lastChild !== this.element) this.text.append(this.element);
    this.range.setStart(place.node, place.at);
    this.range.collapse(true);
    const here = this.range.getClientRects()[0];
    const frame = this.text.getBoundingClientRect();
    if (!here || !here.height) return;
    this.element.style.transform = `translate(${here.left - frame.left}px, ${here.top - frame.top}px)`;
    this.element.style.height = `${here.height}px`;
    this.element.classList.toggle("left", here.left - frame.left > frame.width - 110);
  }

  remove() {
    this.element.remove();
  }
}
