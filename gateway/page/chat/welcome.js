// Fills an empty conversation: explains the service, and offers questions to begin with.

import { h } from "../dom.js";
import { legend } from "../race/origins.js";

const EXAMPLES = [
  ["Code", "Write a Python function that merges two sorted lists, with tests."],
  ["Explain", "Explain how a hash map works, in five short paragraphs."],
  ["A table", "Compare bubble sort, merge sort and quicksort in a Markdown table."],
  ["Repeat", "Write the numbers from 1 to 40 in words, one per line."],
];

export function welcome(ask, isEdge) {
  const examples = EXAMPLES.map(([title, text]) => h("li", {},
    h("button", { type: "button", onclick: () => ask(text) }, h("b", {}, title), h("span", {}, text))));
  const words = isEdge
    ? ["The large model’s words, sooner.", "A small model on this machine drafts the next words ahead of time. The large model checks them, and keeps only what it would have written itself. Ask something, and watch which model had each token first."]
    : ["The large model, alone.", "This is the verifier: it answers without an edge, token by token. Open an edge’s page to watch the same answers come sooner."];
  return h("div", { class: "welcome" }, h("h2", {}, words[0]), h("p", {}, words[1]),
    h("ul", { class: "examples" }, ...examples), isEdge ? legend() : null);
}
