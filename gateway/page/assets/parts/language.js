// The language of the page. An element with `data-label` has the text of that name, one with `data-hint` its title.

import {follow, setting} from "./settings.js";
import {en} from "../texts/en.js";
import {zh} from "../texts/zh.js";

const TEXTS = {en, zh};
const listeners = [];

/** Return the text with this name; `{name}` in it is replaced by the value of that name. */
export function text(name, values) {
    const found = TEXTS[setting("language")]?.[name] ?? en[name] ?? name;
    return values === undefined ? found : found.replace(/\{(\w+)\}/g, (_, each) => values[each] ?? "");
}

/** Return whether there is a text with this name. */
export function has(name) {
    return name in en;
}

/** Write all texts of `root` in the present language. */
export function label(root = document) {
    for (const each of root.querySelectorAll("[data-label]")) each.textContent = text(each.dataset.label);
    for (const each of root.querySelectorAll("[data-hint]")) {
        const hint = text(each.dataset.hint);
        each.setAttribute("aria-label", hint);
        if (each.matches("button, a")) each.title = hint;
    }
    for (const each of root.querySelectorAll("[data-placeholder]")) each.placeholder = text(each.dataset.placeholder);
}

/** Call `listener` after the language has changed. */
export function onLanguage(listener) {
    listeners.push(listener);
}

function change() {
    document.documentElement.lang = setting("language") === "zh" ? "zh-CN" : "en";
    document.title = text("title");
    label();
    for (const listener of listeners) listener();
}

follow("language", change);
/** Begin: write all texts that are there. */
export const start = change;
