// Numbers and times as they are shown. Times are those of Shanghai, wherever the browser is.

import {setting} from "./settings.js";

const ABSENT = "–";
const SHANGHAI = 8 * 3600_000;
// Funds have prices in steps of a thousandth of a yuan.
const THOUSANDTHS = /^(5\d{5}\.SH|1[568]\d{4}\.SZ)$/;
const UNITS = {zh: [[1e12, "万亿"], [1e8, "亿"], [1e4, "万"]], en: [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]};

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Return the digits behind the point of a code's prices. */
export function places(code) {
    return THOUSANDTHS.test(code) ? 3 : 2;
}

/** Return a price; there is none before the first trade, where the source has 0. */
export function price(value, digits = 2) {
    return known(value) && value !== 0 ? value.toFixed(digits) : ABSENT;
}

export function signed(value, digits = 2) {
    return known(value) ? (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits) : ABSENT;
}

export function percent(value) {
    return known(value) ? signed(value * 100) + "%" : ABSENT;
}

/** Return a large number in the units of the language, with three or four digits. */
export function large(value) {
    if (!known(value)) return ABSENT;
    for (const [unit, name] of UNITS[setting("language")] ?? UNITS.en) {
        if (Math.abs(value) >= unit) {
            const of = value / unit;
            return of.toFixed(Math.abs(of) >= 100 ? 1 : 2) + name;
        }
    }
    return Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) >= 100 ? 0 : 1);
}

export function whole(value) {
    return known(value) ? Math.round(value).toLocaleString("en-US") : ABSENT;
}

export function bytes(value) {
    if (!known(value)) return ABSENT;
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = 0;
    for (; value >= 1024 && at < units.length - 1; at++) value /= 1024;
    return (at && value < 100 ? value.toFixed(1) : Math.round(value)) + " " + units[at];
}

/** Return a duration of milliseconds. */
export function duration(ms) {
    if (!known(ms)) return ABSENT;
    const size = Math.abs(ms);
    if (size < 10) return ms.toFixed(2) + " ms";
    if (size < 1000) return ms.toFixed(0) + " ms";
    if (size < 60_000) return (ms / 1000).toFixed(size < 10_000 ? 1 : 0) + " s";
    if (size < 3600_000) return Math.floor(ms / 60_000) + " min";
    if (size < 86_400_000) return (ms / 3600_000).toFixed(1) + " h";
    return (ms / 86_400_000).toFixed(1) + " d";
}

const two = (value) => String(value).padStart(2, "0");

/** Return the time of day of a moment (ms since 1970), with milliseconds where asked for. */
export function clock(ms, fine = false) {
    if (!known(ms) || ms <= 0) return ABSENT;
    const day = (ms + SHANGHAI) % 86_400_000;
    const shown = `${two(Math.floor(day / 3600_000))}:${two(Math.floor(day / 60_000) % 60)}:${two(Math.floor(day / 1000) % 60)}`;
    return fine ? `${shown}.${String(Math.floor(day) % 1000).padStart(3, "0")}` : shown;
}

export function date(ms) {
    if (!known(ms) || ms <= 0) return ABSENT;
    const moment = new Date(ms + SHANGHAI);
    return `${moment.getUTCFullYear()}-${two(moment.getUTCMonth() + 1)}-${two(moment.getUTCDate())}`;
}

export {ABSENT};
