// Requests one answer and stores what arrives in its turn: text, reasoning, calls, and the race.

import { settings } from "../store.js";
import { Race } from "../race/race.js";
import { Failure, post, stream } from "../api.js";

const CHAT = "/v1/chat/completions";
const AGAIN_MS = 500; // after a break of the connection; a page that is being left never gets there
const SEEDS = 2 ** 48; // small enough for any JSON reader

// Returns the request's settings that are not empty. Throws Failure for a text that is no number.
export function asked() {
  const kept = settings();
  const body = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const given = String(kept[name]).trim();
    if (given === "") continue;
    if (!Number.isFinite(Number(given))) throw new Failure(`${name}: ${given} is no number.`, "Correct it in the settings.", "settings");
    body[name] = Number(given);
  }
  body.seed ??= Math.floor(Math.random() * SEEDS);
  if (kept.tools.trim()) body.tools = parsedTools(kept.tools);
  return body;
}

function parsedTools(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Failure("The tools are not valid JSON.", "Correct them in the settings.", "settings");
  }
}

// Returns OpenAI's messages for the turns before an answer.
export function messages(turns, system) {
  const before = system.trim() ? [{ role: "system", content: system }] : [];
  return [...before, ...turns.filter(says).map(message)];
}

// Returns true if a turn has content: an answer that failed or stopped at its beginning has none.
function says({ role, content, calls }) {
  return role !== "assistant" || content || calls?.length;
}

function message(turn) {
  if (turn.role === "user") return { role: "user", content: withFiles(turn) };
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.call, content: turn.content };
  const shown = { role: "assistant", content: turn.content };
  if (!turn.calls?.length) return shown;
  const calls = turn.calls.map(({ id, name, text }) => ({ id, type: "function", function: { name, arguments: text } }));
  return { ...shown, content: turn.content || null, tool_calls: calls };
}

// Returns the question with its files, each in a fence that is longer than any in the file.
function withFiles({ content, files = [] }) {
  const fenced = files.map(({ name, text }) => {
    const fence = "`".repeat(Math.max(3, 1 + longestFence(text)));
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [...fenced, content].filter(Boolean).join("\n\n");
}

function longestFence(text) {
  return Math.max(0, ...[...text.matchAll(/`+/g)].map(([found]) => found.length));
}

// Runs one answer. `turn` is stored; `race` is shown while the answer runs. The service goes on with
// the answer when the page is closed: its id is in `turn.answer` while it runs.
export class Asking {
  // Goes on with a turn that runs, which this page or another tab began: all of it is read again.
  static joined(turn) {
    const asking = Object.create(Asking.prototype);
    const race = new Race(performance.now() - (Date.now() - turn.begun));
    return Object.assign(asking, { turn, race, abort: new AbortController(), seen: 0, isJoined: true });
  }

  // model: the name of one of several; null where there is one.
  constructor(turns, model) {
    const { system } = settings();
    const request = model ? { ...asked(), model } : asked();
    this.body = { ...request, messages: messages(turns, system) };
    this.turn = { role: "assistant", content: "", reasoning: "", calls: [], request, system, state: "running", begun: Date.now() };
    this.race = new Race(performance.now());
    this.abort = new AbortController();
    this.seen = 0; // number of events that were read
  }

  stop() {
    const { answer, state } = this.turn;
    if (answer && state === "running") post(`${CHAT}/${answer}/cancel`, {}).catch(() => {});
    this.abort.abort();
  }

  // Reads the answer to its end. A failure is stored in the turn and not thrown.
  // named: called once the answer has an id.
  async run(named) {
    try {
      for await (const chunk of this.chunks()) {
        if (!this.turn.answer) {
          this.turn.answer = chunk.id;
          named();
        } else if (this.isJoined && this.seen === 1) this.begin();
        this.read(chunk);
      }
      this.turn.state = "done";
    } catch (error) {
      this.failed(error);
    }
    delete this.turn.answer;
    if (!this.isJoined || this.seen) this.turn.race = this.race.kept();
  }

  // Yields the chunks; after a break of the connection, those that follow.
  async *chunks() {
    for (let broken = null, until = 0; ;) {
      try {
        for await (const chunk of this.open()) {
          this.seen += 1;
          yield chunk;
        }
        return;
      } catch (error) {
        if (error.name === "AbortError") throw error;
        if (broken && this.seen === until) throw broken;
        if (error.code !== "broken" || !this.turn.answer) throw error;
        [broken, until] = [error, this.seen];
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
  }

  open() {
    const { signal } = this.abort;
    const { answer } = this.turn;
    const after = this.seen ? `&starting_after=${this.seen - 1}` : "";
    if (answer) return stream(`${CHAT}/${answer}?stream=true${after}`, null, signal);
    const options = { include_usage: true, include_speculation: true };
    return stream(CHAT, { ...this.body, background: true, stream_options: options }, signal);
  }

  // Forgets what was read before the page was loaded, as it comes again.
  begin() {
    Object.assign(this.turn, { content: "", reasoning: "", calls: [] });
  }

  failed(error) {
    const isGone = error.code === "response_not_found" || error.code === "client_closed_request";
    this.turn.state = error.name === "AbortError" || isGone ? "stopped" : "failed";
    if (this.turn.state === "stopped") return;
    const known = error instanceof Failure;
    this.turn.error = {
      message: known ? error.message : `The page made a mistake: ${error.message}`,
      advice: known ? error.advice : "Load the page again.",
      code: error.code ?? "",
    };
  }

  read(chunk) {
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    if (chunk.system_fingerprint?.startsWith("draft:")) this.turn.fallback = chunk.model;
    if (chunk.fallback === "server") this.turn.server = chunk.model;
    if (delta.reasoning_content) this.turn.reasoning += delta.reasoning_content;
    if (delta.content) this.turn.content += delta.content;
    for (const piece of delta.tool_calls ?? []) this.readCall(piece);
    if (choice?.finish_reason) this.turn.finish = choice.finish_reason;
    const known = this.isJoined && chunk.at !== null;
    this.race.read(chunk, delta, known ? this.race.begun + chunk.at : performance.now());
  }

  readCall({ index, id, function: called = {} }) {
    const call = (this.turn.calls[index] ??= { id, name: called.name, text: "" });
    call.text += called.arguments ?? "";
  }
}
