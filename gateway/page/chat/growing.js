// Shows a growing Markdown text, and renders only its last block again.
//
// A fenced block of code is not parsed again at all: its lines are appended. A block that gets very
// long is cut where its rest can be parsed alone, so that no rendering takes noticeably long. A
// quotation or a single item has no such place: these are rendered whole.

import { blocks, codeBlock, elements } from "./markdown.js";
import { colour, piece } from "./colouring.js";
import { watchCode } from "./syntax.js";
import { h } from "../dom.js";

const LONGEST = 4000;
const OPENING = /^( {0,3})(`{3,}|~{3,})([^`\n]*)\n/;
const LAST_PLACE = "P,LI,UL,OL,BLOCKQUOTE,H1,H2,H3,H4,H5,H6,PRE,CODE,TABLE,TBODY,THEAD,TR,TD,TH,DIV";

export class Growing {
  // runs: Runs that colour the text, with offsets in the whole text.
  constructor(root, runs) {
    this.root = root;
    this.runs = runs;
    this.text = "";
    this.done = 0; // number of characters in blocks that do not change any more
    this.marks = []; // [offset, text node] of each marked piece in these blocks
    this.last = null; // {element, marks} of the block that may still change
    this.fence = null;
    this.table = null; // {head, element} of the table whose next rows are the last block
  }

  // Shows a text that begins with the text shown before.
  update(text) {
    this.text = text.replaceAll("\r", " ");
    while ((!this.fence || this.feed()) && this.draw());
  }

  // Draws the blocks that follow. Returns true if the rest is to be parsed again.
  draw() {
    const rest = (this.table?.head ?? "") + this.text.slice(this.done);
    const tokens = rest.trim() ? blocks(rest) : [];
    const lastOne = tokens.findLastIndex((token) => token.type !== "space");
    for (const [i, token] of tokens.entries()) {
      if (token.type === "space") this.done += token.raw.length;
      else if (this.opens(token)) {
        const end = this.done + token.raw.length;
        if (!this.feed()) return false;
        if (this.done !== end && this.done + 1 !== end) return true;
        this.done = end; // marked may count the newline behind a fence to it, or not
      } else if (i < lastOne) this.freeze(this.render(token, token.raw));
      else return this.renderLast(token);
    }
    this.replace(null);
    return false;
  }

  // Renders the block that may still grow. If it is too long, its first part is cut off and kept,
  // and the rest is to be drawn: then this returns true.
  renderLast(token) {
    const size = token.raw.length > LONGEST ? cut(token) : 0;
    if (!size) {
      this.replace(this.render(token, token.raw));
      return false;
    }
    const source = token.raw.slice(0, size);
    const block = this.render(blocks(source)[0], source);
    this.freeze(block);
    if (token.type === "table") {
      const element = block.element.closest("table") ?? block.element.querySelector("table");
      this.table = { head: headOf(token), element };
    }
    return true;
  }

  // source: text of the token. More rows of a table are parsed with its head, and shown without.
  render(token, source) {
    const tokens = Object.assign([token], { links: {} });
    const element = h("div", { class: "block" }, elements(tokens));
    const head = this.table?.head.length ?? 0;
    const marks = colour(element, source, this.done - head, this.runs).filter(([offset]) => offset >= this.done);
    const shown = this.table ? element.querySelector("tbody") ?? h("tbody") : element;
    return { element: shown, size: source.length - head, marks };
  }

  // Begins a fence with the text after its first line, if the token is a fence.
  opens(token) {
    const opening = token.type === "code" && OPENING.exec(token.raw);
    if (!opening) return false;
    this.replace(null);
    this.fence = new Fence(opening, this.runs, this.done);
    this.root.append(this.fence.element);
    return true;
  }

  // Shows more of the open fence. Returns true if it has ended.
  feed() {
    const size = this.fence.read(this.text.slice(this.done));
    if (size === null) return false;
    for (const mark of this.fence.lines) this.marks.push(mark);
    watchCode(this.fence.code);
    this.done += size;
    this.fence = null;
    return true;
  }

  // Replaces the last block, which may change at the next update, by another one or nothing.
  replace(block) {
    if (block) {
      if (this.last) this.last.element.replaceWith(block.element);
      else (this.table?.element ?? this.root).append(block.element);
    } else this.last?.element.remove();
    this.last = block;
  }

  freeze(block) {
    this.replace(block);
    this.last = null;
    this.table = null;
    for (const mark of block.marks) this.marks.push(mark);
    this.done += block.size;
  }

  // Returns the element at whose end the text continues.
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

  // Returns the text node that shows the character at an offset, and the index there; or null.
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

// Returns where to cut a block that is too long: a list before an item, a table before a row, code
// after a line, a paragraph before a line or a word that can begin no other block; 0 for nowhere.
function cut(token) {
  const { type, raw } = token;
  if (type === "list") return cutList(token.items);
  if (type === "table") return cutTable(token);
  if (type === "code") return 1 + raw.lastIndexOf("\n", LONGEST);
  if (type !== "paragraph") return 0;
  const last = (place) => place.exec(raw.slice(0, LONGEST))?.[0].length ?? 0;
  const line = last(/^[^]*\n(?=\p{L}|\d+[^\d.)])/u);
  return line > LONGEST / 2 ? line : last(/^[^]* (?=\p{L}|\d+[^\d.)])/u);
}

// Never cuts off the last item, or row, because it may still grow.
function cutList(items) {
  let size = 0;
  for (const { raw } of items.slice(0, -1)) {
    if (size && size + raw.length > LONGEST) break;
    size += raw.length;
  }
  return size;
}

function cutTable(token) {
  const size = 1 + token.raw.trimEnd().lastIndexOf("\n", LONGEST);
  return size > headOf(token).length ? size : 0;
}

// Returns the source of a table's head, and of the line below the head.
function headOf({ raw }) {
  return /^.*\n.*\n?/.exec(raw)[0];
}

// Shows a fenced block of code, whose complete lines are appended once.
class Fence {
  constructor([top, indent, marker, info], runs, offset) {
    this.indent = new RegExp(`^ {0,${indent.length}}`); // code begins where its fence begins
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

  // Shows the lines of `text`, which begins with the fence. Returns the fence's length once closed.
  read(text) {
    let start = this.read_;
    for (let end; (end = text.indexOf("\n", start)) >= 0; start = end + 1) {
      if (this.closing.test(text.slice(start, end))) {
        this.line.element.remove();
        this.line = { marks: [], element: this.line.element };
        return end;
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
    const indent = this.indent.exec(text.slice(start, end))[0].length;
    this.runs.split(this.offset + start + indent, this.offset + end, (origin, from, until) => {
      fragment.append(piece(text.slice(from - this.offset, until - this.offset), origin, from, marks));
    });
    return fragment;
  }

  marks() {
    return this.line.marks.length ? [...this.lines, ...this.line.marks] : this.lines;
  }
}
