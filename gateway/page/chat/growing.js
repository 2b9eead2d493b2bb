// Shows a Markdown text that grows, and only ever renders its last block again.
//
// A fenced block of code is not parsed again at all: its lines are appended. A block that gets
// very long is cut at a line, so that no rendering takes long enough to be felt.

import { blocks, codeBlock, elements } from "./markdown.js";
import { colour, piece } from "./colouring.js";
import { h } from "../dom.js";

const LONGEST = 4000;
const OPENING = /^ {0,3}(`{3,}|~{3,})([^`\n]*)\n/;
const LAST_PLACE = "P,LI,UL,OL,BLOCKQUOTE,H1,H2,H3,H4,H5,H6,PRE,CODE,TABLE,TBODY,THEAD,TR,TD,TH,DIV";

export class Growing {
  // runs: what colours the text, with offsets of the whole text.
  constructor(root, runs) {
    this.root = root;
    this.runs = runs;
    this.text = "";
    this.done = 0; // characters of blocks that do not change any more
    this.marks = []; // [offset, text node] of these
    this.last = null; // {element, marks} of the block that may still change
    this.fence = null;
  }

  // Shows a text that begins with the one before.
  update(text) {
    this.text = text.replaceAll("\r", " ");
    if (this.fence && !this.feed()) return;
    const rest = this.text.slice(this.done);
    const tokens = rest.trim() ? blocks(rest) : [];
    const lastOne = tokens.findLastIndex((token) => token.type !== "space");
    for (const [i, token] of tokens.entries()) {
      if (token.type === "space") this.done += token.raw.length;
      else if (this.opens(token)) {
        if (!this.feed()) return;
      } else if (i < lastOne) this.freeze(this.render(token, token.raw));
      else return this.renderLast(token);
    }
    this.replace(null);
  }

  // Renders the block that may still grow; what is too long of it is cut off, and kept.
  renderLast(token) {
    const size = token.raw.length > LONGEST ? cut(token.raw) : 0;
    if (!size) return this.replace(this.render(token, token.raw));
    const [first] = blocks(token.raw.slice(0, size));
    this.freeze(this.render(first, token.raw.slice(0, size)));
    this.update(this.text);
  }

  render(token, source) {
    const tokens = Object.assign([token], { links: {} });
    const element = h("div", { class: "block" }, elements(tokens));
    return { element, size: source.length, marks: colour(element, source, this.done, this.runs) };
  }

  // Begins a fence, if the token is one, with the text that follows its first line.
  opens(token) {
    const opening = token.type === "code" && OPENING.exec(token.raw);
    if (!opening) return false;
    this.replace(null);
    this.fence = new Fence(opening, this.runs, this.done);
    this.root.append(this.fence.element);
    return true;
  }

  // Shows more of the open fence. Returns whether it has ended.
  feed() {
    const size = this.fence.read(this.text.slice(this.done));
    if (size === null) return false;
    for (const mark of this.fence.lines) this.marks.push(mark);
    this.done += size;
    this.fence = null;
    return true;
  }

  // Shows what may change at the next update, or nothing, in place of what did until now.
  replace(block) {
    if (block) {
      if (this.last) this.last.element.replaceWith(block.element);
      else this.root.append(block.element);
    } else this.last?.element.remove();
    this.last = block;
  }

  freeze(block) {
    this.replace(block);
    this.last = null;
    for (const mark of block.marks) this.marks.push(mark);
    this.done += block.size;
  }

  // The element at whose end the text goes on.
  end() {
    let place = this.fence?.code ?? this.last?.element ?? null;
    if (!place) {
      const element = h("div", { class: "block" }, h("p"));
      this.replace({ element, marks: [] });
      place = element;
    }
    while (place.lastElementChild?.matches(LAST_PLACE)) place = place.lastElementChild;
    return place;
  }

  // The text node that shows the character at an offset, and its place in that; or null.
  find(offset) {
    const tail = this.fence?.marks() ?? this.last?.marks ?? [];
    const marks = tail.length && tail[0][0] <= offset ? tail : this.marks;
    let low = 0;
    let high = marks.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (marks[middle][0] <= offset) low = middle + 1;
      else high = middle;
    }
    const [start, node] = marks[low - 1] ?? [];
    return node ? { node, at: Math.min(offset - start, node.length) } : null;
  }
}

// Where to cut a block that is too long: after a line, else after a word; 0 for nowhere.
function cut(raw) {
  const line = raw.lastIndexOf("\n", LONGEST);
  return 1 + (line > LONGEST / 2 ? line : raw.lastIndexOf(" ", LONGEST));
}

// A fenced block of code whose complete lines are appended once.
class Fence {
  constructor([top, marker, info], runs, offset) {
    this.closing = new RegExp(`^ {0,3}${marker[0]}{${marker.length},}[ \\t]*$`);
    this.runs = runs;
    this.offset = offset;
    this.read_ = top.length;
    this.code = h("code");
    this.lines = [];
    this.line = { marks: [], element: h("span") };
    this.code.append(this.line.element);
    this.element = h("div", { class: "block" }, codeBlock(h("pre", {}, this.code), info.trim().split(/\s/)[0]));
  }

  // Shows the lines of `text`, which begins with the fence. Returns its length once it closes.
  read(text) {
    let start = this.read_;
    for (let end; (end = text.indexOf("\n", start)) >= 0; start = end + 1) {
      if (this.closing.test(text.slice(start, end))) {
        this.line.element.remove();
        this.line = { marks: [], element: this.line.element };
        return end + 1;
      }
      this.line.element.before(this.spans(text, start, end + 1, this.lines));
    }
    this.read_ = start;
    this.line.marks = [];
    const rest = text.slice(start);
    const shown = /^ {0,3}[`~]+\s*$/.test(rest) ? start : text.length;
    this.line.element.replaceChildren(this.spans(text, start, shown, this.line.marks));
    return null;
  }

  spans(text, start, end, marks) {
    const fragment = document.createDocumentFragment();
    this.runs.split(this.offset + start, this.offset + end, (origin, from, until) => {
      fragment.append(piece(text.slice(from - this.offset, until - this.offset), origin, from, marks));
    });
    return fragment;
  }

  marks() {
    return this.line.marks.length ? [...this.lines, ...this.line.marks] : this.lines;
  }
}
