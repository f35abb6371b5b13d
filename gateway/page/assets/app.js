// The page: its views, the bar above them, and what is shown of each.

import {element, icon, ICONS, mark, Text} from "./parts/element.js";
import {draw} from "./parts/frame.js";
import * as language from "./parts/language.js";
import * as appearance from "./parts/look.js";
import {clock} from "./parts/numbers.js";
import {keyDialog} from "./views/key_dialog.js";
import {hasKey, onKey} from "./parts/key.js";
import {quotes} from "./parts/quotes.js";
import {reasonOf} from "./parts/reports.js";
import {setting} from "./parts/settings.js";
import {coloursTool, languageTool, themeTool} from "./parts/tools.js";
import {Market} from "./views/market.js";
import {State} from "./views/state.js";

const {text} = language;
const byId = (id) => document.getElementById(id);

// The views in their order. What a person does not look at first is fetched when it is needed.
const VIEWS = {
    state: {icon: "M2.5 8h2.6l1.8-4.5 2.8 9 1.7-4.5h2.1", make: async () => new State()},
    market: {icon: "M3 13V8M8 13V3M13 13V6", make: async () => new Market()},
    trade: {icon: "M3 5.5h9l-2-2M13 10.5H4l2 2", make: async () => new (await import("./views/trade.js")).Trade()},
    consoles: {icon: "M3 4.5L6.5 8 3 11.5M8 12h5", make: async () => new (await import("./views/consoles.js")).Consoles()},
    clients: {icon: "M8 8.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM3 13.5c.5-2.5 2.5-3.5 5-3.5s4.5 1 5 3.5", make: async () => new (await import("./views/clients.js")).Clients()},
};
const made = new Map();
let open = null;

function tabs() {
    for (const [name, view] of Object.entries(VIEWS)) {
        byId("views").append(element("a", {href: `#${name}`, id: `to-${name}`}, icon(view.icon, 18), element("span", {label: `view.${name}`})));
    }
}

/** Show the view that the URL names: `#market/600519.SH`. */
async function show() {
    const shown = location.hash;
    const [named, detail = ""] = shown.slice(1).split("/");
    if (named === "main") return;
    const name = named in VIEWS ? named : "state";
    if (!made.has(name)) made.set(name, VIEWS[name].make());
    const view = await made.get(name);
    // While a view was fetched, another one may have been chosen.
    if (shown !== location.hash) return;
    if (open !== view) {
        open?.hide?.();
        byId("main").replaceChildren(view.element);
        open = view;
        language.label(view.element);
        for (const each of Object.keys(VIEWS)) mark(byId(`to-${each}`), "aria-current", each === name ? "page" : null);
        scrollTo(0, 0);
    }
    view.show?.(detail);
}

const feedText = new Text();
const clockText = new Text();

function showFeed() {
    const {socket, feed} = quotes;
    const state = quotes.barred || (socket.state === "open" && feed?.state) || "away";
    byId("feed").dataset.state = state;
    feedText.show(text(`feed.${state}`));
    byId("feed").title = reasonOf(socket.state === "open" ? feed?.reason : socket.reason);
    byId("simulated").hidden = !feed?.simulated;
}

function tools() {
    byId("feed").append(element("i", {"aria-hidden": "true"}), feedText.node);
    byId("clock").append(clockText.node);
    const key = byId("key");
    const showKey = () => {
        key.replaceChildren(icon(ICONS.key));
        key.dataset.state = hasKey() ? "given" : "";
        key.title = text(hasKey() ? "key.given" : "key.enter");
        key.setAttribute("aria-label", key.title);
    };
    key.addEventListener("click", () => keyDialog());
    language.onLanguage(showKey);
    onKey(showKey);
    coloursTool(byId("colours"));
    themeTool(byId("theme"));
    languageTool(byId("language"));
    setInterval(() => draw(() => clockText.show(clock(Date.now()))), 1000);
}

function shortcuts(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, dialog")) return;
    const at = Number(event.key) - 1;
    const name = Object.keys(VIEWS)[at];
    if (name) location.hash = name;
}

appearance.start();
tabs();
tools();
language.onLanguage(showFeed);
quotes.onFeed(showFeed);
quotes.want(setting("codes"));
quotes.socket.open();
addEventListener("hashchange", show);
addEventListener("keydown", shortcuts);
language.start();
show();
