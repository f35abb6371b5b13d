// The buttons of the bar that change a setting of the page: theme, colours of prices, language.

import {element, icon, ICONS} from "./element.js";
import {onLanguage, text} from "./language.js";
import {follow, keep, setting} from "./settings.js";

const THEMES = ["auto", "dark", "light"];

/** Let a button change the setting `name` to `next(value)`; `shown(value)` is what it shows. */
function tool(button, name, next, shown) {
    button.addEventListener("click", () => keep(name, next(setting(name))));
    const write = () => {
        button.replaceChildren(...[shown(setting(name))].flat());
        button.title = text(name, {value: text(`${name}.${setting(name)}`)});
        button.setAttribute("aria-label", button.title);
    };
    onLanguage(write);
    follow(name, write);
}

export function languageTool(button) {
    tool(button, "language", (value) => (value === "zh" ? "en" : "zh"), (value) => (value === "zh" ? "EN" : "中"));
}

export function themeTool(button) {
    tool(button, "theme", (value) => THEMES[(THEMES.indexOf(value) + 1) % THEMES.length],
        (value) => (value === "auto" ? element("span", {class: "half"}) : icon(value === "dark" ? ICONS.moon : ICONS.sun)));
}

export function coloursTool(button) {
    tool(button, "colours", (value) => (value === "red-up" ? "green-up" : "red-up"),
        () => [element("i", {class: "arrow up"}, "▲"), element("i", {class: "arrow down"}, "▼")]);
}
