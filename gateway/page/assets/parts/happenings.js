// What has happened lately, as this page has seen it: losses and returns, refusals, gaps, skips.

const MOST = 200;
const HOUR = 3600_000;
export const happenings = [];
const listeners = [];
let noted = 0;
// Times and numbers of skipped frames and of gaps.
const counted = {skipped: [], gaps: []};

/** Note what happened: `level` is ok, note, warn or bad; `name` and `values` are those of a text. */
export function note(level, name, values = {}) {
    const newest = happenings[0];
    if (newest && newest.name === name && JSON.stringify(newest.values) === JSON.stringify(values)) {
        newest.times += 1;
        newest.at = Date.now();
    } else {
        happenings.unshift({number: (noted += 1), at: Date.now(), level, name, values, times: 1});
        happenings.length = Math.min(happenings.length, MOST);
    }
    for (const listener of listeners) listener();
}

/** Count what was left out or missed. */
export function count(what, number) {
    counted[what].push([Date.now(), number]);
    if (counted[what].length > 4 * MOST) counted[what].splice(0, MOST);
}

/** Return how many were counted in the last hour. */
export function lastHour(what) {
    const from = Date.now() - HOUR;
    return counted[what].reduce((sum, [at, number]) => (at >= from ? sum + number : sum), 0);
}

export function onHappening(listener) {
    listeners.push(listener);
}
