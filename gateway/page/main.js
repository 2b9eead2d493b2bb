// Puts the page together.

import { $ } from "./dom.js";
import { change, running, settings } from "./store.js";
import { Composer } from "./chat/composer.js";
import { ConversationView } from "./chat/conversation.js";
import { Models } from "./panels/models.js";
import { Sidebar } from "./panels/sidebar.js";
import { openConnect } from "./panels/connect.js";
import { openSettings } from "./panels/settings.js";
import { Service } from "./panels/status.js";
import { showColours } from "./race/strip.js";
import { redraw } from "./race/timeline.js";

const THEMES = { auto: "light", light: "dark", dark: "auto" };

function drawTheme() {
  const { theme } = settings();
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const words = { auto: "as the system", light: "light", dark: "dark" };
  $("theme").setAttribute("aria-label", `Colours: ${words[theme]}. Change`);
  $("theme").title = `Colours: ${words[theme]}`;
  redraw();
}

const editSettings = () => openSettings({ themed: drawTheme, keyed: () => service.look() });

let conversation = null;
const models = new Models({ kept: () => conversation?.kept.model, choose: (name) => conversation.choose(name) });
const service = new Service(models, () => conversation?.isEmpty && conversation.draw(0));
const sidebar = new Sidebar({ open: (id) => conversation.open(id), current: () => conversation?.id });
const composer = new Composer({
  ask: (text, files) => conversation.ask(text, files),
  stop: () => conversation.stop(),
  running: () => conversation?.asking != null,
});
conversation = new ConversationView({
  isEdge: () => service.isEdge,
  model: () => models.chosen?.name ?? null,
  openSettings: editSettings,
  changed: () => {
    sidebar.draw();
    composer.draw();
    service.draw();
  },
});

addEventListener("pagehide", () => conversation.save(conversation.kept));
$("open-connect").addEventListener("click", () => openConnect(models.chosen?.name));
$("open-settings").addEventListener("click", editSettings);
$("open-status").addEventListener("click", () => service.open());
$("theme").addEventListener("click", () => {
  change({ theme: THEMES[settings().theme] });
  drawTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
drawTheme();
showColours();
service.watch();
if (running()) conversation.open(running());
sidebar.draw();
$("question").focus();
