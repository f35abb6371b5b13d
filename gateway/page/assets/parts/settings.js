// What the page remembers in this browser: language, theme, colours and the codes of the board. Never a key.

const PREFIX = "qmt-bridge.";
const DEFAULTS = {
    language: navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en",
    theme: "auto",
    colours: "red-up",
    codes: ["000001.SH", "399001.SZ", "600519.SH", "000001.SZ", "300750.SZ", "601318.SH", "688981.SH", "600000.SH", "601398.SH", "510300.SH", "510050.SH"],
    levels: false,
};
const listeners = new Map();

/** Return a setting; a value that was damaged in the browser's store is the default. */
export function setting(name) {
    try {
        const kept = JSON.parse(localStorage.getItem(PREFIX + name));
        return kept !== null && typeof kept === typeof DEFAULTS[name] && Array.isArray(kept) === Array.isArray(DEFAULTS[name]) ? kept : DEFAULTS[name];
    } catch {
        return DEFAULTS[name];
    }
}

/** Keep a setting and tell those that follow it. */
export function keep(name, value) {
    try {
        localStorage.setItem(PREFIX + name, JSON.stringify(value));
    } catch {
        // A browser may have no store for this page; the setting then holds until the page is closed.
        DEFAULTS[name] = value;
    }
    for (const listener of listeners.get(name) ?? []) listener(value);
}

/** Call `listener` with each new value of a setting. */
export function follow(name, listener) {
    if (!listeners.has(name)) listeners.set(name, []);
    listeners.get(name).push(listener);
}
