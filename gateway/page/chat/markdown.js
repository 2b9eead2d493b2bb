// Turns Markdown into elements that run no code: marked parses, DOMPurify sanitises.
//
// HTML in an answer is shown as text. Images are shown as links, because loading one would tell
// its host about the reader. Links open elsewhere and name no referrer.

import { Marked } from "../vendor/marked.esm.js";
import "../vendor/purify.min.js";
import { copy, h, icon } from "../dom.js";

const marked = new Marked({
  gfm: true,
  tokenizer: { html() {}, tag() {} },
  renderer: {
    image({ href, text }) { return `<a href="${escape(href)}">${escape(text || href)}</a>`; },
    checkbox({ checked }) { return checked ? "☑ " : "☐ "; },
  },
});

const ALLOWED = {
  ALLOWED_TAGS: ["a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5",
    "h6", "hr", "i", "li", "ol", "p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead",
    "tr", "ul"],
  ALLOWED_ATTR: ["href", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

function escape(text) {
  return text.replace(/[&<>"']/g, (found) => `&#${found.charCodeAt(0)};`);
}

// Returns the blocks of a text; the lengths of their `raw` add up to that of the text.
export function blocks(text) {
  return marked.lexer(text);
}

export function elements(tokens) {
  const fragment = globalThis.DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) finishLink(link);
  for (const pre of fragment.querySelectorAll("pre")) {
    const language = /language-([\w+#.-]{1,30})/.exec(pre.firstElementChild?.className ?? "");
    const place = document.createComment("");
    pre.replaceWith(place);
    place.replaceWith(codeBlock(pre, language?.[1] ?? ""));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const place = document.createComment("");
    table.replaceWith(place);
    place.replaceWith(h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" }, table));
  }
  return fragment;
}

function finishLink(link) {
  if (!link.hasAttribute("href")) return;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
}

// Returns a block of code, with its language and a button that copies it.
export function codeBlock(pre, language) {
  pre.tabIndex = 0;
  pre.firstElementChild.dataset.language = language;
  const button = h("button", { type: "button", class: "action" }, icon("copy"), "Copy");
  button.addEventListener("click", () => copy(button, pre.textContent));
  return h("div", { class: "code" }, h("div", { class: "code-top" }, h("span", {}, language || "text"), button), pre);
}
