// Draws the passes of the large model over time: one column for each pass, as high as its rows.
//
// The filled part of a column stands for accepted draft tokens, the pale part for those that were not.
// A column without draft tokens is a small bar. A bar before a column is the time for which
// this answer waited for the pass: because it was held for draft tokens, or because others ran.

import { h } from "../dom.js";

const HEIGHT = 56;
const FIRST_SPAN_S = 4;

const drawn = new WeakMap(); // canvas: function that draws it again

// Draws all passes again, in the colours of another theme: those of hidden turns once they are seen.
export function redraw() {
  for (const canvas of document.querySelectorAll("canvas.timeline")) {
    const again = () => drawn.get(canvas)?.();
    if (canvas.checkVisibility({ contentVisibilityAuto: true })) again();
    else canvas.closest(".turn").addEventListener("contentvisibilityautostatechange", again, { once: true });
  }
}

export class Timeline {
  constructor() {
    this.canvas = h("canvas", { class: "timeline", role: "img", "aria-label": "No pass yet" });
    const words = ["accepted drafts", "drafts not accepted", "time spent waiting"].map((name, i) => h("span", { class: `key key-${i}` }, name));
    this.element = h("figure", { class: "passes", hidden: true }, this.canvas,
      h("figcaption", {}, "Passes of the large model: ", ...words));
  }

  // passes: [at_s, rows, accepted, waited_s], in order. endS: the time now. over: nothing follows.
  draw(passes, endS, over) {
    const { canvas } = this;
    drawn.set(canvas, () => this.draw(passes, endS, over));
    const width = canvas.clientWidth;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    const [across, down] = [Math.round(width * scale), Math.round(HEIGHT * scale)];
    if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, HEIGHT);
    const style = getComputedStyle(canvas);
    const colours = { ink: style.color, line: style.outlineColor, accepted: style.borderTopColor, waited: style.borderRightColor };
    let span = over ? endS * 1.01 : FIRST_SPAN_S;
    while (span < endS) span *= 1.5;
    columns(context, passes, width / span, colours, Math.max(4, ...passes.map(([, rows]) => rows)));
    axis(context, width, span, colours);
  }

  describe(passes) {
    const rows = passes.reduce((sum, pass) => sum + pass[1], 0);
    const accepted = passes.reduce((sum, pass) => sum + pass[2], 0);
    this.canvas.setAttribute("aria-label",
      `${passes.length} passes of the large model judged ${rows} rows and accepted ${accepted} draft tokens.`);
  }
}

function columns(context, passes, perSecond, colours, most) {
  const unit = (HEIGHT - 16) / most;
  const thick = Math.max(1, Math.min(7, (perSecond * meanGap(passes)) - 1));
  for (const [at, rows, accepted, waited] of passes) {
    const x = at * perSecond;
    const floor = HEIGHT - 14;
    if (waited) {
      context.fillStyle = colours.waited;
      context.fillRect(x - waited * perSecond - thick, floor - 4, waited * perSecond, 4);
    }
    context.fillStyle = colours.line;
    context.fillRect(x - thick, floor - rows * unit, thick, rows * unit);
    context.fillStyle = colours.accepted;
    context.fillRect(x - thick, floor - accepted * unit, thick, accepted * unit);
    context.fillStyle = colours.ink;
    context.fillRect(x - thick, floor - 1.5, thick, 1.5);
  }
}

function meanGap(passes) {
  return passes.length < 2 ? 1 : (passes.at(-1)[0] - passes[0][0]) / (passes.length - 1);
}

function axis(context, width, span, colours) {
  context.fillStyle = colours.ink;
  context.font = "10px system-ui, sans-serif";
  const step = [0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300].find((s) => (s * width) / span > 60) ?? 600;
  for (let at = step; (at * width) / span < width - 16; at += step) {
    context.fillText(`${at} s`, (at * width) / span - 8, HEIGHT - 2);
  }
  context.fillText("0", 0, HEIGHT - 2);
}
