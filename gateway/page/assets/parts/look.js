// The theme: which one holds, and the colours that a canvas needs.

import {follow, setting} from "./settings.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = [];

function change() {
    const theme = setting("theme");
    const root = document.documentElement;
    root.dataset.theme = theme === "auto" ? (system.matches ? "dark" : "light") : theme;
    root.dataset.colours = setting("colours");
    document.querySelector('meta[name="theme-color"]').content = colour("--panel");
    for (const listener of listeners) listener();
}

/** Return the value of a custom property of the style sheets. */
export function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Return the colours of charts and curves as they are now. */
export function look() {
    return {
        up: colour("--up"),
        down: colour("--down"),
        bid: colour("--up"),
        ask: colour("--down"),
        bidFill: colour("--up-wash"),
        askFill: colour("--down-wash"),
        accent: colour("--accent"),
        accentWash: colour("--accent-wash"),
        average: colour("--average"),
        grid: colour("--line"),
        soft: colour("--soft"),
        text: colour("--text"),
        panel: colour("--panel"),
        font: `11px ${getComputedStyle(document.body).fontFamily}`,
    };
}

export function onLook(listener) {
    listeners.push(listener);
}

/** Use the theme and the colours of the settings. */
export function start() {
    change();
    follow("theme", change);
    follow("colours", change);
    system.addEventListener("change", change);
}
