// Lists the origins of tokens; each is shown by a colour and by a kind of underline.
//
// The list is open: an origin that is not here is shown under its own name.

import { h } from "../dom.js";

const KNOWN = {
  draft: ["draft model", "the small model drafted it, and the large one agreed"],
  ahead: ["read ahead", "found earlier in the text, and confirmed by the small model"],
  lookup: ["prompt lookup", "it followed the same words earlier in the text"],
  verifier: ["verifier", "the verifier found it in the text or in the prediction"],
  grammar: ["grammar", "the only token that the grammar allows"],
  prompt: ["prompt", "a part of the prompt"],
  target: ["cloud alone", "no draft was there in time, or it was wrong"],
};

export function nameOf(origin) {
  return KNOWN[origin]?.[0] ?? origin;
}

// Returns the class of an origin's colour.
export function classOf(origin) {
  return KNOWN[origin] ? `o-${origin}` : "o-other";
}

// Returns a list of origins with their marks; with `counts`, of those only, with their shares.
export function legend(counts) {
  const total = Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0);
  const origins = counts ? Object.keys(counts).filter((origin) => counts[origin] && origin !== "prompt") : ["draft", "lookup", "target"];
  origins.sort((one, other) => order(one) - order(other));
  const items = origins.map((origin) => h("li", { title: KNOWN[origin]?.[1] },
    h("span", { class: `t ${classOf(origin)}` }, nameOf(origin)),
    total ? h("span", { class: "share" }, `${Math.round((100 * counts[origin]) / total)} %`) : null));
  return h("ul", { class: "legend coloured", "aria-label": "Who had each token first" }, ...items);
}

function order(origin) {
  const at = Object.keys(KNOWN).indexOf(origin);
  return at < 0 ? 99 : at;
}
