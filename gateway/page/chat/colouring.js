// Marks each piece of a rendered text with its origin.
//
// Rendering Markdown loses the offsets of the text, so each text node is looked up in the source:
// as a whole if it is there, or word by word. A piece that is not found nearby gets no mark.

const FAR = 300;

// Holds runs of characters of one origin, in order, and finds the run at an offset quickly.
export class Runs {
  constructor(pairs = []) {
    this.origins = [];
    this.ends = [];
    for (const [origin, length] of pairs) this.add(origin, length);
  }

  get length() {
    return this.ends.at(-1) ?? 0;
  }

  add(origin, length) {
    if (!length) return;
    if (this.origins.at(-1) === origin) this.ends[this.ends.length - 1] += length;
    else {
      this.ends.push(this.length + length);
      this.origins.push(origin);
    }
  }

  pairs() {
    return this.origins.map((origin, i) => [origin, this.ends[i] - (this.ends[i - 1] ?? 0)]);
  }

  // Returns the index of the run that contains an offset.
  at(offset) {
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // Calls each(origin, start, end) for the parts of [start, end).
  split(start, end, each) {
    for (let i = this.at(start); start < end; i += 1) {
      const until = Math.min(end, this.ends[i] ?? end);
      each(this.origins[i] ?? "", start, until);
      start = until;
    }
  }
}

// Marks the text nodes under `root`, which shows source[0..], beginning at `base` of the runs.
// Returns [offset, text node] for each marked piece, in order.
export function colour(root, source, base, runs) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) {
    if (!walker.currentNode.parentElement?.closest(".code-top")) nodes.push(walker.currentNode);
  }
  const marks = [];
  let cursor = 0;
  for (const node of nodes) {
    const pieces = node.data.trim() ? align(node.data, source, cursor) : [];
    if (!pieces.length) continue;
    cursor = pieces.at(-1)[1] + pieces.at(-1)[2];
    node.replaceWith(spans(node.data, pieces, base, runs, marks));
  }
  return marks;
}

// Returns the pieces of a text that the source has: [offset in text, offset in source, length].
function align(text, source, cursor) {
  const found = source.indexOf(text, cursor);
  if (found >= 0 && found - cursor <= FAR) return [[0, found, text.length]];
  const pieces = [];
  for (const match of text.matchAll(/\S+\s?/g)) {
    const word = match[0];
    let at = source.indexOf(word, cursor);
    let length = word.length;
    if (at < 0 || at - cursor > FAR) {
      length = word.trimEnd().length;
      at = source.indexOf(word.slice(0, length), cursor);
    }
    if (at < 0 || at - cursor > FAR) continue;
    pieces.push([match.index, at, length]);
    cursor = at + length;
  }
  return pieces;
}

function spans(text, pieces, base, runs, marks) {
  const fragment = document.createDocumentFragment();
  let shown = 0;
  for (const [at, offset, length] of pieces) {
    if (at > shown) fragment.append(text.slice(shown, at));
    runs.split(base + offset, base + offset + length, (origin, start, end) => {
      const from = at + start - base - offset;
      fragment.append(piece(text.slice(from, from + end - start), origin, start, marks));
    });
    shown = at + length;
  }
  if (shown < text.length) fragment.append(text.slice(shown));
  return fragment;
}

// Returns one piece of text with the mark of its origin.
export function piece(text, origin, offset, marks) {
  const node = document.createTextNode(text);
  marks.push([offset, node]);
  if (!origin) return node;
  const span = document.createElement("span");
  span.className = `t ${origin}`;
  span.append(node);
  return span;
}
