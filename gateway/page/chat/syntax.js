// Colours code by its syntax: highlight.js finds the parts, and the browser paints them.
//
// Syntax has the colour of the letters, while the origin of a token has the line below them and the
// ground behind them, so both show at once. No element is made: the parts are ranges of the text
// (CSS Custom Highlight API), so copying, origins and the cloud's cursor are as without. Only code in
// sight is painted, which keeps long conversations quick. Browsers without that API paint nothing.

const LONGEST = 30_000; // characters; longer code would hold up a frame
const GROUPS = {
  keyword: "keyword", tag: "keyword", name: "keyword", "selector-tag": "keyword", meta: "keyword", section: "keyword",
  string: "string", regexp: "string", addition: "string", symbol: "string",
  number: "literal", literal: "literal", built_in: "literal", deletion: "literal",
  title: "name", variable: "name", type: "name", attr: "name", attribute: "name", property: "name", "selector-class": "name", "selector-id": "name",
  comment: "comment", quote: "comment", doctag: "comment",
  subst: null, // code within a string
};

// Collects the parts of a text, in place of highlight.js's emitter, which makes HTML of them.
class Parts {
  constructor() {
    this.found = []; // [group, start, end]
    this.scopes = [];
    this.end = 0;
  }

  addText(text) {
    const group = GROUPS[this.scopes.findLast((scope) => scope in GROUPS)];
    if (group) this.found.push([group, this.end, this.end + text.length]);
    this.end += text.length;
  }

  __addSublanguage({ found, end }) {
    for (const [group, from, until] of found) this.found.push([group, this.end + from, this.end + until]);
    this.end += end;
  }

  openNode(scope) { this.scopes.push(scope.split(".")[0]); }
  closeNode() { this.scopes.pop(); }
  startScope(scope) { this.openNode(scope); }
  endScope() { this.closeNode(); }
  finalize() {}
  toHTML() { return ""; }
}

let library = null; // the promise of highlight.js, which is loaded for the first code in sight
const painted = new Map(); // [group, range] pairs of each element that is in sight

const sight = globalThis.CSS?.highlights && new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) (isIntersecting ? paint : erase)(target);
}, { rootMargin: "300px" });

// Paints an element with code, which does not change any more, whenever it is in sight.
export function watchCode(code) {
  if (code.dataset.language && code.textContent.length <= LONGEST) sight?.observe(code);
}

async function paint(code) {
  if (painted.has(code)) return;
  painted.set(code, []);
  library ??= import("../vendor/highlight.min.js").then(({ default: found }) => {
    found.configure({ __emitter: Parts });
    return found;
  });
  const { language } = code.dataset;
  const highlighter = await library;
  const ranges = painted.get(code); // none if it has gone out of sight meanwhile
  if (!ranges || !highlighter.getLanguage(language)) return;
  const { _emitter: parts } = highlighter.highlight(code.textContent, { language, ignoreIllegals: true });
  const at = places(code);
  for (const [group, start, end] of parts.found) {
    const [from, until] = [at(start), at(end)];
    const range = new StaticRange({ startContainer: from.node, startOffset: from.at, endContainer: until.node, endOffset: until.at });
    if (!CSS.highlights.has(group)) CSS.highlights.set(group, new Highlight());
    CSS.highlights.get(group).add(range);
    ranges.push([group, range]);
  }
}

function erase(code) {
  for (const [group, range] of painted.get(code) ?? []) CSS.highlights.get(group).delete(range);
  painted.delete(code);
}

// Returns a function from offsets in the text of an element, which must not fall, to text nodes.
function places(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode();
  let start = 0;
  return (offset) => {
    while (offset > start + node.length) {
      start += node.length;
      node = walker.nextNode();
    }
    return { node, at: offset - start };
  };
}
