// Calls this service, with the key from the settings, and explains failures in plain words.

import { settings } from "./store.js";

// An error with texts for people: what went wrong (`message`), and what to do (`advice`).
export class Failure extends Error {
  constructor(message, advice, code = "") {
    super(message);
    this.advice = advice;
    this.code = code;
  }
}

const UNREACHABLE = () => new Failure(
  "The service cannot be reached.",
  "Is it still running? Start it again (picospec up, or picospec edge), then try again.", "unreachable",
);

const BROKEN = () => new Failure(
  "The connection broke before the answer was complete.",
  "What came so far is kept. Try again to get a whole answer.", "broken",
);

// Texts are looked up by OpenAI's error code first, then by the HTTP status.
const ADVICE = {
  invalid_api_key: ["The service asks for an API key, and this one is missing or wrong.",
    "Put the right key into the settings."],
  rate_limit_exceeded: ["Your API key is at one of its limits.", "Wait a little, then try again."],
  context_length_exceeded: ["This conversation does not fit into the model's context.",
    "Begin a new conversation, shorten the file, or lower the limit of tokens."],
  model_not_found: ["The service has no such model.", "Choose another one at the top of the page, then try again."],
  400: [null, "Change what it names, in the settings or in the question, and send again."],
  404: [null, "Is this page as old as the service? Load it again."],
  413: ["The question is larger than the service accepts.", "Send a shorter file."],
  429: ["The service is busy.", "Wait a moment, then try again."],
  loading: ["The edge is not ready yet.", "Wait a moment: this page looks again every ten seconds."],
  503: ["The large model cannot be reached now.",
    "The edge looks for it all the time: try again when the status light is green."],
  500: ["The service made a mistake.", "Its log says more. Try again."],
};

function failure(status, error = {}) {
  const [words, advice] = ADVICE[error.code] ?? ADVICE[status] ?? ADVICE[status < 500 ? 400 : 500];
  const said = error.message ?? `It answered with status ${status}.`;
  return new Failure(words ? `${words.slice(0, -1)} (${said}).` : `The service says: ${said}`, advice,
    error.code ?? String(status));
}

// Returns the status that an error within a stream would have had.
function statusOf({ type, code }) {
  if (type === "server_error") return code === "internal_error" ? 500 : 503;
  return type === "rate_limit_error" ? 429 : 400;
}

async function request(path, options = {}) {
  const { key } = settings();
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    throw error.name === "AbortError" ? error : UNREACHABLE();
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  return failure(response.status, body.error);
}

// Returns the JSON at a path. Throws Failure, except for the statuses in `also`.
export async function get(path, { also = [], signal } = {}) {
  const response = await request(path, { signal });
  if (!response.ok && !also.includes(response.status)) throw await errorOf(response);
  return response.json();
}

// Returns the answer to a request that is not streamed.
export async function post(path, body, { signal } = {}) {
  const response = await request(path, posted(body, signal));
  if (!response.ok) throw await errorOf(response);
  return response.json();
}

// Yields the chunks of a streamed answer; without a body, of one that was begun before. `at` is when
// a chunk came, in milliseconds after the request, if that is told; `fallback`, who answers in place
// of the verifiers. Throws Failure, and AbortError if
// `signal` stopped it.
export async function* stream(path, body, signal) {
  const response = await request(path, body ? posted({ ...body, stream: true }, signal) : { signal });
  if (!response.ok) throw await errorOf(response);
  const fallback = response.headers.get("x-picospec-fallback");
  for await (const { data, at } of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw failure(statusOf(chunk.error), chunk.error);
    yield Object.assign(chunk, { at, fallback });
  }
  throw BROKEN();
}

function posted(body, signal) {
  const headers = { "content-type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

// Yields the `data` of each server-sent event, and the time in the comment before it.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let at = null;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        at = /^: \d+$/.test(line) ? Number(line.slice(2)) : at;
        if (line.startsWith("data: ")) yield { data: line.slice(6).trimEnd(), at };
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : BROKEN();
  } finally {
    reader.cancel().catch(() => {});
  }
}
