// "Prove it": sends the same request with the same seed to the large model alone.
//
// The edge proxies the request, so that the page calls one service. Both texts are shown side by
// side. If they differ, the probabilities of both tokens there are requested: if these are nearly
// equal, the rounding of the large model's numbers has decided, and not the edge.

import { Failure, post, stream } from "../api.js";
import { announce, h } from "../dom.js";
import { messages } from "../chat/asking.js";

const ALONE = "/v1/picospec/direct/chat/completions";
const NEAR_TIE = 0.1; // difference of log-probabilities that rounding to bfloat16 can reverse
const DRAW_EVERY_MS = 150;

// Begins the proof of an answer, which replaces an earlier one, and returns it.
export function prove(view, before) {
  const { turn } = view;
  view.proof?.element.remove();
  const proof = new Proof(turn, { ...turn.request, messages: messages(before, turn.system ?? "") });
  view.proof = proof;
  view.after.before(proof.element);
  proof.element.scrollIntoView({ block: "nearest" });
  proof.run();
  return proof;
}

class Proof {
  constructor(turn, body) {
    this.turn = turn;
    this.body = body;
    this.abort = new AbortController();
    this.alone = "";
    this.verdict = h("p", { class: "verdict" }, "Asking the large model alone …");
    this.words = h("p", {}, `The same request, with the same seed ${body.seed}, without the edge.`);
    this.ours = side("With PicoSpec");
    this.theirs = side("Cloud alone");
    this.more = h("div");
    this.element = h("section", { class: "proof", "aria-label": "Proof", "aria-busy": "true" },
      h("div", { class: "proof-top" }, this.verdict, this.words), this.more,
      h("div", { class: "sides" }, this.ours.element, this.theirs.element));
    this.ours.show(turn.content, turn.content.length);
    this.ours.time(turn.race?.elapsed_s);
  }

  async run() {
    const began = performance.now();
    try {
      await this.compare(await this.ask(began));
    } catch (error) {
      this.failed(error);
    } finally {
      this.element.removeAttribute("aria-busy");
    }
  }

  stop() {
    this.abort.abort();
  }

  // Shows why the proof ends early. The message that the texts differ stays.
  failed(error) {
    const stopped = error.name === "AbortError";
    const known = error instanceof Failure;
    const message = stopped ? "Stopped." : known ? error.message : `The page made a mistake: ${error.message}`;
    const advice = known ? error.advice : "";
    if (this.element.classList.contains("differs")) this.words.textContent = `Why they differ was not found. ${message} ${advice}`;
    else [this.verdict.textContent, this.words.textContent] = [message, advice];
    if (!stopped) announce(message);
  }

  // Streams the answer of the large model alone. Returns the seconds to its last token.
  async ask(began) {
    let drawn = 0;
    let last = began;
    for await (const chunk of stream(ALONE, { ...this.body, stream_options: { include_usage: true } }, this.abort.signal)) {
      const delta = chunk.choices?.[0]?.delta ?? {};
      if (Object.keys(delta).length) last = performance.now();
      this.alone += delta.content ?? "";
      if (last - drawn < DRAW_EVERY_MS) continue;
      drawn = last;
      this.theirs.show(this.alone, this.same());
      this.theirs.time((last - began) / 1000);
    }
    return (last - began) / 1000;
  }

  // Returns the length of the beginning that both texts share.
  same() {
    const [ours, theirs] = [this.turn.content, this.alone];
    let at = 0;
    while (at < ours.length && at < theirs.length && ours[at] === theirs[at]) at += 1;
    return at;
  }

  compare(seconds) {
    const same = this.same();
    this.theirs.show(this.alone, same);
    this.theirs.time(seconds);
    if (this.alone === this.turn.content) return this.identical(seconds);
    this.ours.show(this.turn.content, same);
    this.element.classList.add("differs");
    this.verdict.textContent = `The texts differ from character ${same + 1} on.`;
    this.words.textContent = "The first difference is marked. What follows it continues another text.";
    announce(this.verdict.textContent);
    return this.explain();
  }

  identical(seconds) {
    const ours = this.turn.race?.elapsed_s;
    this.element.classList.add("same");
    this.verdict.textContent = "Identical, to the last character.";
    const saved = seconds - ours;
    this.words.textContent = saved > 0
      ? `PicoSpec saved ${saved.toFixed(1)} s: ${ours.toFixed(1)} s instead of ${seconds.toFixed(1)} s, ${(seconds / ours).toFixed(1)} times as fast.`
      : `PicoSpec took ${ours.toFixed(1)} s, the large model alone ${seconds.toFixed(1)} s: here nothing was saved.`;
    announce(this.verdict.textContent);
  }

  // Asks the large model for the probabilities at the first token that differs.
  async explain() {
    const ask = { ...this.body, logprobs: true, top_logprobs: 5 };
    const found = await post(ALONE, ask, { signal: this.abort.signal });
    const tie = tokensAt(found.choices[0].logprobs?.content ?? [], this.turn.content, this.alone);
    if (tie) this.more.replaceChildren(explanation(tie));
  }
}

// Returns the large model's token at which the texts differ, and our token if it is among the most
// likely ones; null if the tokens do not tell. Tokens are compared by their bytes, because a token
// may be a part of a character.
function tokensAt(entries, ours, theirs) {
  const [own, other] = [ours, theirs].map((text) => new TextEncoder().encode(text));
  const goesOn = (text, { bytes }, at) => bytes.every((byte, i) => text[at + i] === byte);
  let at = 0;
  for (const entry of entries) {
    if (!goesOn(other, entry, at)) return null;
    if (!goesOn(own, entry, at)) {
      const found = entry.top_logprobs.find((top) => top.bytes.length && goesOn(own, top, at));
      return { chosen: entry, other: found ?? null };
    }
    at += entry.bytes.length;
  }
  return null;
}

function explanation({ chosen, other }) {
  const percent = (entry) => `${(100 * Math.exp(entry.logprob)).toFixed(2)} %`;
  const rows = [["cloud alone", chosen], ["with PicoSpec", other]].filter(([, entry]) => entry)
    .map(([name, entry]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("code", {}, JSON.stringify(entry.token))), h("td", {}, percent(entry))));
  const near = other && Math.abs(chosen.logprob - other.logprob) < NEAR_TIE;
  const words = near
    ? "A near-tie: the two tokens are all but equally likely, and the rounding of the large model’s numbers (bfloat16), which depends on what it computes together, has chosen."
    : "This is no near-tie. If the large model’s weights are exact, the texts should not differ: please report it.";
  return h("div", { class: "tie" }, h("p", {}, words), h("table", {},
    h("thead", {}, h("tr", {}, ...["", "token", "probability"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...rows)));
}

function side(title) {
  const time = h("span");
  const text = h("pre", { tabindex: "0" });
  return {
    element: h("section", { "aria-label": title }, h("h3", {}, title, time), text),
    time(seconds) { time.textContent = seconds === undefined ? "" : `${seconds.toFixed(1)} s`; },
    show(content, same) {
      const end = content.slice(same).match(/^\s*\S*/)?.[0].length ?? 0;
      text.replaceChildren(content.slice(0, same), ...(end ? [h("mark", {}, content.slice(same, same + end))] : []), content.slice(same + end));
    },
  };
}
