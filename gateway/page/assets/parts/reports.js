// What the service tells, which is in English, in the language of the page: reasons with a code, and events.

import {has, text} from "./language.js";

const CODED = /^(?:1\d{3} )?([a-z_]+|1\d{3})(?:: ([^]*))?$/;

/** Return a reason such as `market_silent`, or `unknown_symbol: ...`, with the meaning of its code. */
export function reasonOf(told) {
    const [, code, detail] = CODED.exec(told ?? "") ?? [];
    if (!code || !has(`reason.${code}`)) return told ?? "";
    const meaning = text(`reason.${code}`);
    return detail ? text("reason.detail", {meaning, detail}) : text("reason.code", {meaning, code});
}

/** Return the reason of an error frame, or of a code that an answer rejects; empty if there is none. */
export function refusalOf({code, error, reason} = {}) {
    return reason === undefined ? (error === undefined ? "" : reasonOf(`${code}: ${error}`)) : reasonOf(`${error}: ${reason}`);
}

/** Return a reason to be put behind a sentence; empty if there is none. */
export function because(reason) {
    return reason ? text("report.reason", {reason: reasonOf(reason)}) : "";
}

/** Return the name of a source; several of them are joined by a plus sign. */
export function sourceOf(told) {
    return told.split("+").map((each) => (has(`source.${each}`) ? text(`source.${each}`) : each)).join(" + ");
}

const LEVELS = {up: "ok", ended: "note", connecting: "warn", stale: "warn", down: "bad", refused: "bad"};
const ENDED = /^(\d{4})(?: (.*?))?(?: \((aborted|client already gone|client did not read it)\))?$/;

function endOf(told) {
    const [, code, reason] = ENDED.exec(told) ?? [];
    return code ? (reason ? reasonOf(reason) : code) : told;
}

// The sentences that feeder and gateway note (`Recent.note`): what is read out of one, and how bad it is.
const SENTENCES = [
    [/^the feeder is connected: source (.+), state (\w+)$/, ([source, state]) => [text("report.feeder", {source: sourceOf(source), state: text(`feed.${state}`)}), LEVELS[state]]],
    [/^(?:the )?feed is (\w+)(?:: ([^]+))?$/, ([state, reason]) => [text("report.feed", {state: text(`feed.${state}`), reason: because(reason)}), LEVELS[state]]],
    [/^account (.+) \((\w+)\) is (\w+)(?:: ([^]+))?$/, ([account, type, state, reason]) => [text("report.account", {account, type, state: text(`account.${state}`), reason: because(reason)}), LEVELS[state]]],
    [/^(\d+) messages were lost on the way from the feeder$/, ([count]) => [text("happened.gap", {count}), "warn"]],
    [/^trade journal: it is written again$/, () => [text("report.journal_up"), "ok"]],
    [/^trade journal: ([^]+)$/, ([reason]) => [text("trouble.journal", {reason}), "bad"]],
    [/^([^]+) is ended by an administrator for (\d+) clients$/, ([topic, count]) => [text("report.topic_ended", {topic, count}), "note"]],
    [/^(\/\S+) of (.+) is ended by an administrator$/, ([path, address]) => [text("report.client_ended", {path, address}), "note"]],
    [/^(\/\S+) from (\S+): (.+) after ([\d.]+) s, (\d+) frames$/, ([path, address, end, seconds, frames]) => [text("report.client", {path, address, seconds, frames, reason: endOf(end)}), "warn"]],
    [/^(\S+) of (\S+): ([a-z_]+: [^]+)$/, ([topic, address, reason]) => [text("report.refused_to", {topic, address, reason: reasonOf(reason)}), "warn"]],
    [/^([^]+?) is refused: ([^]+)$/, ([topic, reason]) => [text("report.refused", {topic, reason: reasonOf(reason)}), "warn"]],
];

/** Return an event of the service in the language of the page, and its level if the sentence tells one. */
export function reported(sentence) {
    for (const [form, read] of SENTENCES) {
        const found = form.exec(sentence);
        if (found) return read(found.slice(1));
    }
    return [sentence, undefined];
}
