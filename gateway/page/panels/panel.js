// Makes a dialog with a title and a button that closes it. Esc closes it, too.

import { $, h, icon } from "../dom.js";

export function panel(id, title, ...body) {
  const dialog = $(id);
  const close = h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  dialog.replaceChildren(
    h("div", { class: "panel-top" }, h("h2", { id: `${id}-title` }, title), close),
    h("div", { class: "panel-body" }, ...body.filter(Boolean)),
  );
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  if (!dialog.open) dialog.showModal();
  return dialog;
}
