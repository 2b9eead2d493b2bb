// Tracks an answer while it runs: the origin of each token, the chain, the passes, the link.
//
// The stream's extension that docs/api.md describes (`include_speculation`) reports these. Without
// reports, the race has only the tokens and the time. Times are in milliseconds of
// performance.now(); stored times are relative to the request, in seconds.

import { Runs } from "../chat/colouring.js";
import { classOf } from "./origins.js";

const PASSES_KEPT = 3000;

export class Race {
  constructor(begun) {
    this.begun = begun;
    this.first = null; // time of the first token
    this.last = begun;
    this.runs = new Runs(); // runs of the answer's text, each with the class of its colour
    this.counts = {}; // tokens by origin
    this.tokens = 0;
    this.ends = []; // for each chunk with text: [tokens, characters] up to its end
    this.chain = "";
    this.broken = "";
    this.breaks = 0;
    this.passes = [];
    this.judged = 0;
    this.accepted = 0;
    this.passCount = 0;
    this.link = null;
    this.rowMs = null;
    this.speculates = false;
  }

  read(chunk, delta, now) {
    const told = chunk.speculation;
    const text = delta.content ?? "";
    if (told?.event) this.event(told, now);
    else if (told) this.tell(told, text);
    else this.runs.add("", text.length);
    if (!told && (text || delta.reasoning_content)) this.tokens += 1;
    if (this.first === null && this.tokens) this.first = now;
    if (text) this.ends.push([this.tokens, this.runs.length]);
    if (text || (told && !told.event)) this.last = now;
  }

  tell({ spans, tokens }, text) {
    let start = 0;
    for (const [characters, origin] of text ? spans ?? [] : []) {
      const end = advance(text, start, characters);
      this.runs.add(this.speculates ? classOf(origin) : "", end - start);
      start = end;
    }
    this.runs.add("", text.length - start);
    for (const [origin, count] of Object.entries(tokens ?? {})) {
      this.counts[origin] = (this.counts[origin] ?? 0) + count;
      this.tokens += count;
    }
    if (text) this.chain = this.chain.startsWith(text) ? this.chain.slice(text.length) : "";
  }

  event(event, now) {
    if (event.event === "chain") this.chainIs(event);
    else if (event.event === "pass") this.passed(event, now);
    else if (event.event === "link") this.link = event;
    else if (event.event === "totals") this.totals(event);
  }

  chainIs({ broken, text }) {
    this.speculates = true;
    if (!broken) {
      this.chain = text;
      return;
    }
    this.broken = text;
    this.chain = "";
    this.breaks += 1;
  }

  passed({ rows, accepted, waited_ms: waited, cloud_row_ms: rowMs }, now) {
    this.speculates = true;
    this.passCount += 1;
    this.judged += Math.max(0, rows - 1);
    this.accepted += accepted;
    this.rowMs = rowMs ?? this.rowMs;
    if (this.passes.length < PASSES_KEPT) {
      this.passes.push([round((now - this.begun) / 1000), rows, accepted, round((waited ?? 0) / 1000)]);
    }
  }

  // Takes the totals, which are exact, while the sums made here are not.
  totals({ tokens, passes, drafted, accepted, cloud_row_ms: rowMs, ...link }) {
    this.link = link.rtt_ms === null ? null : link;
    this.rowMs = rowMs ?? this.rowMs;
    this.counts = tokens;
    this.tokens = Object.values(tokens).reduce((sum, count) => sum + count, 0);
    [this.passCount, this.judged, this.accepted] = [passes, drafted, accepted];
  }

  // Returns the tokens that the cloud alone would have by now: its first with ours, then one a row.
  // These may be more than ours, because the length of the answer is not known before its end.
  cloudTokens(now) {
    if (this.first === null || !this.rowMs) return 0;
    return 1 + Math.floor((now - this.first) / this.rowMs);
  }

  // Returns the index in the text of the end of the n-th token, as exactly as the chunks tell.
  offsetOf(tokens) {
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle][0] < tokens) low = middle + 1;
      else high = middle;
    }
    const [until, end] = this.ends[low] ?? [0, this.runs.length];
    const [from, start] = this.ends[low - 1] ?? [0, 0];
    return until > from ? Math.round(start + ((end - start) * (tokens - from)) / (until - from)) : end;
  }

  // Returns what is stored with the answer, as JSON values.
  kept() {
    return { ...this.figures(), runs: this.runs.pairs() };
  }

  figures() {
    const elapsed = (this.last - this.begun) / 1000;
    const generating = this.first === null ? 0 : (this.last - this.first) / 1000;
    const alone = this.rowMs && this.first !== null ? (this.first - this.begun + (this.tokens - 1) * this.rowMs) / 1000 : null;
    return {
      counts: this.counts, tokens: this.tokens, speculates: this.speculates,
      passes: this.passes, pass_count: this.passCount, judged: this.judged, accepted: this.accepted,
      elapsed_s: round(elapsed), first_s: this.first === null ? null : round((this.first - this.begun) / 1000),
      tokens_per_s: generating ? (this.tokens - 1) / generating : null,
      alone_s: alone, cloud_tokens: this.cloudTokens(this.last),
      rtt_ms: this.link?.rtt_ms ?? null, bytes: this.link ? (this.link.bytes_up ?? 0) + (this.link.bytes_down ?? 0) : 0,
    };
  }
}

// Returns the index after `characters` more characters, each one or two units of JavaScript.
function advance(text, start, characters) {
  let at = start;
  for (let n = 0; n < characters && at < text.length; n += 1) {
    at += text.codePointAt(at) > 0xffff ? 2 : 1;
  }
  return at;
}

function round(seconds) {
  return Math.round(seconds * 1000) / 1000;
}
