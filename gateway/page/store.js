// Stores conversations and settings in this browser's localStorage, and nowhere else.
//
// A conversation is {id, turns, model}; its title and its model, if it has chosen one of several, are
// in a list of all conversations, so that none has to be read to show the list. A turn is {role, content, ...}; an answer also has what the race
// showed (see chat/asking.js).

const SETTINGS = "picospec.settings";
const LIST = "picospec.conversations";
const PREFIX = "picospec.conversation.";

const DEFAULTS = {
  key: "", system: "", temperature: "", top_p: "", max_tokens: "", seed: "", tools: "", model: "",
  colours: true, steady: true, theme: "auto",
};

let unsaved = {}; // settings that could not be stored; they last as long as the page

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
    throw new Full("This browser cannot keep this conversation: its storage is full (delete one to make room), or closed to this page.");
  }
}

export function settings() {
  return { ...DEFAULTS, ...read(SETTINGS, {}), ...unsaved };
}

export function change(values) {
  try {
    write(SETTINGS, { ...settings(), ...values });
    unsaved = {};
  } catch {
    unsaved = { ...unsaved, ...values };
  }
}

// Returns all conversations as {id, title, model}, the last changed one first.
export function list() {
  return read(LIST, []);
}

// Returns the conversations whose title and text have all words of a query; all for an empty one.
export function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return list().filter(({ id, title }) => {
    if (!words.length) return true;
    const parts = read(PREFIX + id, []).flatMap(({ content, reasoning, files = [] }) =>
      [content, reasoning, ...files.flatMap(({ name, text }) => [name, text])]);
    const text = [title, ...parts].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

export function begin() {
  return { id: crypto.randomUUID?.() ?? String(Date.now()), turns: [], isNew: true };
}

// Returns a stored conversation, or null. Closing the page has stopped an answer without an id; the
// service goes on with any other.
export function load(id) {
  const turns = read(PREFIX + id, null);
  for (const turn of turns ?? []) if (turn.state === "running" && !turn.answer) turn.state = "stopped";
  return turns && { id, turns, model: list().find((kept) => kept.id === id)?.model };
}

// Returns the id of the conversation that was changed last if its answer runs, or null.
export function running() {
  const id = list()[0]?.id;
  return id && load(id)?.turns.at(-1)?.state === "running" ? id : null;
}

// Stores a conversation that has turns, unless it was deleted. Its first question is its title.
export function save(conversation) {
  const { id, turns, model, isNew } = conversation;
  const known = list().find((other) => other.id === id);
  if (!turns.length || (!known && !isNew)) return;
  write(PREFIX + id, turns);
  const title = known?.title ?? (turns[0].content.trim().slice(0, 60) || "A file");
  write(LIST, [{ id, title, model }, ...list().filter((other) => other.id !== id)]);
  conversation.isNew = false;
}

export function rename(id, title) {
  write(LIST, list().map((kept) => (kept.id === id ? { ...kept, title } : kept)));
}

export function remove(id) {
  write(LIST, list().filter((kept) => kept.id !== id));
  localStorage.removeItem(PREFIX + id);
}
