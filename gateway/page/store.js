// Conversations and settings, in this browser's localStorage and nowhere else.
//
// A conversation is {id, title, changed, turns}. A turn is {role, content, ...}; an answer has
// also what the race showed (see chat/asking.js). Each conversation has an entry of its own, so
// that saving one does not rewrite the others.

const SETTINGS = "picospec.settings";
const PREFIX = "picospec.conversation.";

export const DEFAULTS = {
  key: "", system: "", temperature: "", top_p: "", max_tokens: "", seed: "", tools: "",
  colours: true, theme: "auto",
};

export class Full extends Error {}

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    throw new Full("This browser's storage is full. Delete a conversation to keep this one.");
  }
}

export function settings() {
  return { ...DEFAULTS, ...read(SETTINGS, {}) };
}

export function change(values) {
  write(SETTINGS, { ...settings(), ...values });
}

// All conversations, the one changed last first; each without its turns.
export function list() {
  return Object.keys(localStorage)
    .filter((name) => name.startsWith(PREFIX))
    .map((name) => read(name, null))
    .filter((found) => found && Array.isArray(found.turns))
    .map(({ id, title, changed }) => ({ id, title, changed }))
    .sort((one, other) => other.changed - one.changed);
}

export function load(id) {
  const found = read(PREFIX + id, null);
  return found && Array.isArray(found.turns) ? found : null;
}

export function begin() {
  return { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", changed: 0, turns: [] };
}

// Keeps a conversation that has turns; its first question becomes its title.
export function save(conversation) {
  if (!conversation.turns.length) return;
  conversation.title ||= conversation.turns[0].content.trim().slice(0, 60);
  conversation.changed = Date.now();
  write(PREFIX + conversation.id, conversation);
}

export function rename(id, title) {
  const found = load(id);
  if (found) write(PREFIX + id, { ...found, title });
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}
