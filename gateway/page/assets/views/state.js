// The state of the service: whether it works, how fast, and what has happened lately.

import {drawing, element, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {happenings, lastHour, onHappening} from "../parts/happenings.js";
import {hops} from "../parts/hops.js";
import {has, onLanguage, text} from "../parts/language.js";
import {bytes, clock, duration, large, whole} from "../parts/numbers.js";
import {quotes} from "../parts/quotes.js";
import {because, reasonOf, reported, sourceOf} from "../parts/reports.js";
import {Rows, table} from "../parts/rows.js";
import {service} from "../parts/service.js";
import {keyDialog} from "./key_dialog.js";

const MARKETS = ["SH", "SZ", "BJ"];
const HOPS = ["exchange_to_callback", "callback_to_publish", "publish_to_worker", "worker_to_socket", "publish_to_page"];
const LINE = {width: 240, height: 36};
const EVENTS = 60;
const ACCOUNT_LEVELS = {up: "ok", connecting: "warn", stale: "warn", down: "bad", refused: "bad"};
const FEED_LEVELS = {up: "ok", ended: "note", connecting: "warn", stale: "warn", down: "bad", refused: "bad", away: "bad", locked: "warn", barred: "bad"};
const KINDS = new Map(Object.entries({feed: "note", account: "note", journal: "warn", refusal: "warn", client: "note", gap: "warn", alert: "bad", recovery: "ok", start: "ok"}));
const REFRESH = 1000;

function numbered(same, name) {
    same.set(name, (same.get(name) ?? 0) + 1);
    return `${name} ${same.get(name)}`;
}

/** Return whether the feeder has not answered, so that nothing is known of its accounts and its journal. */
function missing(state) {
    return state?.missing.includes("feeder") ?? false;
}

class Tile {
    constructor(name) {
        this.value = new Text("–");
        this.told = new Text();
        this.element = element("div", {class: "tile", "data-tile": name},
            element("dt", {label: `tile.${name}`}), element("dd", {}, element("b", {}, this.value.node), element("span", {}, this.told.node)));
    }

    show(value, told = "", level = "") {
        this.value.show(value);
        this.told.show(told);
        mark(this.element, "data-level", level || null);
    }
}

export class State {
    constructor() {
        this.tiles = Object.fromEntries(["feed", "source", "trade", "journal", "store", "alerts", "workers", "clients", "in", "out", "lag", "gaps"].map((name) => [name, new Tile(name)]));
        this.verdict = new Text();
        this.verdictTold = new Text();
        this.verdictBox = element("header", {class: "verdict", role: "status"}, element("h1", {}, this.verdict.node), element("p", {}, this.verdictTold.node));
        this.lacks = new Text();
        this.keyButton = element("button", {type: "button", class: "button", label: "key.enter", on: {click: () => keyDialog()}});
        this.lacksBox = element("div", {class: "lacks", hidden: true}, element("p", {}, this.lacks.node), this.keyButton);
        this.element = element("div", {class: "state"}, this.verdictBox, this.lacksBox,
            element("dl", {class: "tiles"}, Object.values(this.tiles).map((tile) => tile.element)),
            element("div", {class: "state-grid"}, this.rates(), this.latency(), this.markets(), this.accounts(), this.pushers(), this.workers(), this.lately()));
        this.draw = this.draw.bind(this);
        for (const listen of [(each) => quotes.onFeed(each), (each) => service.onState(each), onHappening, onLanguage]) listen(() => draw(this.draw));
    }

    show() {
        service.start();
        clearInterval(this.timer);
        this.timer = setInterval(() => draw(this.draw), REFRESH);
        draw(this.draw);
    }

    hide() {
        service.stop();
        clearInterval(this.timer);
    }

    panel(name, ...inside) {
        return element("section", {class: `panel s-${name}`, "aria-labelledby": `s-${name}`}, element("header", {class: "panel-head"}, element("h2", {id: `s-${name}`, label: `state.${name}`})), inside);
    }

    rates() {
        this.lines = ["in", "out"].map((name) => {
            const value = new Text();
            const line = drawing("polyline", {class: `line ${name}`, fill: "none"});
            const shown = drawing("svg", {viewBox: `0 0 ${LINE.width} ${LINE.height}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "rate-line"}, line);
            return {value, line, element: element("div", {class: "rate"}, element("span", {class: "soft", label: `rate.${name}`}), element("b", {}, value.node), shown)};
        });
        return this.panel("rates", this.lines.map((each) => each.element));
    }

    latency() {
        this.hops = HOPS.map((name) => {
            const texts = [new Text(), new Text()];
            const bars = [element("i", {class: "p99"}), element("i", {class: "p50"})];
            return {name, texts, bars, element: element("tr", {}, element("th", {scope: "row", label: `hop.${name}`}), ...texts.map((each) => element("td", {}, each.node)), element("td", {class: "hop-bar", "aria-hidden": "true"}, bars))};
        });
        return this.panel("latency", element("table", {class: "hops"},
            element("thead", {}, element("tr", {}, element("th", {scope: "col", label: "hop"}), element("th", {scope: "col"}, "p50"), element("th", {scope: "col"}, "p99"), element("td"))),
            element("tbody", {}, this.hops.map((each) => each.element))));
    }

    markets() {
        this.ages = MARKETS.map((market) => {
            const value = new Text("–");
            const row = element("tr", {}, element("th", {scope: "row"}, element("span", {class: "state-dot"}), element("span", {label: `market.${market}`})), element("td", {}, value.node));
            return {market, value, element: row};
        });
        return this.panel("markets", element("table", {class: "ages"},
            element("thead", {}, element("tr", {}, element("th", {scope: "col", label: "state.market"}), element("th", {scope: "col", label: "state.age"}))),
            element("tbody", {}, this.ages.map((each) => each.element))));
    }

    accounts() {
        const made = table("state.accounts", [
            {name: "account.account", head: true, of: (each) => each.account},
            {name: "account.state", kind: "state-cell", of: (each) => text(`account.${each.state}`), mark: (each) => ACCOUNT_LEVELS[each.state]},
            {name: "account.since", of: (each) => clock(each.since)},
            {name: "account.reason", kind: "word wrap", of: (each) => reasonOf(each.reason)},
        ]);
        this.accountRows = made.rows;
        this.noAccounts = element("p", {class: "empty", label: "state.no_accounts"});
        return this.panel("accounts", made.table, this.noAccounts);
    }

    pushers() {
        const made = table("state.pushers", [
            {name: "pusher.pusher", head: true, of: (each) => each.name},
            {name: "account.state", kind: "state-cell", of: (each) => text(`account.${each.state}`), mark: (each) => ACCOUNT_LEVELS[each.state]},
            {name: "account.since", of: (each) => clock(each.since)},
            {name: "pusher.serves", kind: "word wrap", of: (each) => [...each.kinds, ...each.markets, ...each.accounts].join(" ")},
            {name: "pusher.records", of: (each) => whole(each.records)},
            {name: "pusher.conflated", of: (each) => whole(each.conflated)},
            {name: "pusher.refused", of: (each) => whole(each.refused)},
            {name: "account.reason", kind: "word wrap", of: (each) => reasonOf(each.reason)},
        ]);
        this.pusherRows = made.rows;
        this.pusherPanel = this.panel("pushers", element("div", {class: "scroll", tabindex: 0, role: "region", "data-hint": "state.pushers"}, made.table));
        return this.pusherPanel;
    }

    workers() {
        const made = table("state.workers", [
            {name: "worker.worker", head: true, of: (each) => each.worker},
            {name: "worker.gateway", kind: "word", of: (each) => each.gateway},
            {name: "worker.clients", of: (each) => whole(each.clients)},
            {name: "worker.frames", of: (each) => large(Math.round(each.frames_rate))},
            {name: "worker.bytes", of: (each) => `${bytes(each.bytes_rate)}/s`},
            {name: "worker.waiting", of: (each) => bytes(each.waiting_bytes)},
            {name: "worker.lag", of: (each) => duration(each.lag * 1000)},
            {name: "worker.gaps", of: (each) => `${whole(each.gaps_hour)} / ${whole(each.skipped_hour)}`},
        ]);
        this.workerRows = made.rows;
        this.workerPanel = this.panel("workers", element("div", {class: "scroll", tabindex: 0, role: "region", "data-hint": "state.workers"}, made.table));
        return this.workerPanel;
    }

    lately() {
        const body = element("tbody");
        this.eventRows = new Rows(body, [
            {kind: "time", of: (each) => clock(each.at)},
            {kind: "state-cell word", of: (each) => each.where, mark: (each) => each.level},
            {kind: "word wrap", of: (each) => each.text},
        ]);
        const heads = ["time", "where", "text"].map((name) => element("th", {scope: "col", class: "word", label: `event.${name}`}));
        return this.panel("lately", element("div", {class: "scroll", tabindex: 0, role: "region", "data-hint": "state.lately"},
            element("table", {class: "events"}, element("thead", {class: "unseen"}, element("tr", {}, heads)), body)));
    }

    draw() {
        if (!this.element.isConnected) return;
        const state = service.state?.full ? service.state : null;
        this.drawVerdict(state);
        this.drawTiles(state);
        this.drawRates();
        this.drawHops(state);
        this.drawMarkets(state);
        this.accountRows.show(state?.accounts ?? [], (each) => each.account + each.type);
        this.noAccounts.hidden = !state || missing(state) || state.accounts.length > 0;
        this.pusherPanel.hidden = !state?.pushers?.length;
        this.pusherRows.show(state?.pushers ?? [], (each) => each.name);
        this.workerPanel.hidden = !state?.workers.length;
        this.workerRows.show(state?.workers ?? [], (each) => each.worker);
        this.drawEvents(state);
    }

    /** Return the state of the feed, or why nothing is known of it: the gateway is away, or refuses this page. */
    feedOf(state) {
        const {socket, feed, barred} = quotes;
        if (barred) return barred;
        // A gateway that hangs keeps its sockets open, and answers nothing.
        if (service.lacks === "away" || (socket.state !== "open" && !state)) return "away";
        return state?.feed ?? feed?.state ?? "away";
    }

    drawVerdict(state) {
        const feed = this.feedOf(state);
        const troubles = [];
        if (state?.journal) troubles.push(text("trouble.journal", {reason: state.journal}));
        if (state && !state.complete && state.missing.length) troubles.push(text("trouble.missing", {missing: state.missing.join(", ")}));
        if (state && ["down", "waiting"].includes(state.trade)) troubles.push(text("trouble.trade"));
        const pushers = state?.pushers?.filter((each) => each.state !== "up").map((each) => each.name) ?? [];
        if (pushers.length) troubles.push(text("trouble.pushers", {pushers: pushers.join(", ")}));
        if (state?.store?.failure) troubles.push(text("trouble.store", {reason: state.store.failure}));
        for (const name of ["store", "alerts"]) if (state?.[name]?.up === false) troubles.push(text(`trouble.${name}_silent`));
        if (state?.alerts?.open.length) troubles.push(text("trouble.alerts", {rules: [...new Set(state.alerts.open.map((each) => (has(`rule.${each.rule}`) ? text(`rule.${each.rule}`) : each.rule)))].join(", ")}));
        if (state?.totals.slow_clients) troubles.push(text("trouble.slow", {count: state.totals.slow_clients}));
        const level = FEED_LEVELS[feed] === "ok" ? (troubles.length ? "warn" : "ok") : FEED_LEVELS[feed] ?? "bad";
        mark(this.verdictBox, "data-level", level);
        this.verdict.show(text(troubles.length && level === "warn" && feed === "up" ? "verdict.troubles" : `verdict.${feed}`));
        const reason = feed === "away" || quotes.barred ? reasonOf(quotes.socket.reason) || text("away") : reasonOf(state ? state.reason : quotes.feed?.reason);
        const since = state?.since && feed === state.feed ? text("verdict.since", {time: clock(state.since), for: duration(Math.max(0, Date.now() - state.since))}) : "";
        this.verdictTold.show([feed === "up" ? "" : reason, ...troubles, since].filter(Boolean).join(" · "));
        const lacks = feed === "locked" ? text("lacks.locked") : service.lacks ? text(`lacks.${service.lacks}`) : "";
        this.lacks.show(lacks);
        this.lacksBox.hidden = !lacks;
        this.keyButton.hidden = service.lacks !== "key";
    }

    drawTiles(state) {
        const {tiles} = this;
        const feed = this.feedOf(state);
        const welcome = quotes.feed;
        tiles.feed.show(text(`feed.${feed}`), state?.since && feed === state.feed ? duration(Math.max(0, Date.now() - state.since)) : "", FEED_LEVELS[feed]);
        const source = state?.source ?? welcome?.source;
        const simulated = state?.simulated ?? welcome?.simulated;
        tiles.source.show(source ? sourceOf(source) : "–", simulated ? text("simulated") : state?.sdk ? `${source} ${state.sdk}` : "", simulated ? "sim" : "");
        const trade = missing(state) ? null : state?.trade ?? welcome?.trade;
        tiles.trade.show(trade ? text(`trade.${trade}`) : "–", state?.accounts.length ? text("accounts", {count: state.accounts.length}) : "", {up: "ok", waiting: "warn", down: "bad"}[trade]);
        const journal = state && !missing(state);
        tiles.journal.show(journal ? text(state.journal ? "journal.down" : "journal.up") : "–", state?.journal_note ?? "", journal ? (state.journal ? "bad" : state.journal_note ? "warn" : "ok") : "");
        this.drawParts(state);
        const totals = state?.totals;
        tiles.workers.show(whole(totals?.workers), state?.workers.length ? text("gateways", {count: new Set(state.workers.map((each) => each.gateway)).size}) : "");
        tiles.clients.show(whole(totals?.clients), totals ? text("topics", {count: whole(totals.topics)}) : "");
        tiles.in.show(large(totals && Math.round(totals.messages_rate)), text("a_second"));
        tiles.out.show(large(totals && Math.round(totals.frames_rate)), totals ? `${bytes(totals.bytes_rate)}/s` : "");
        tiles.lag.show(totals ? duration(totals.lag * 1000) : "–", totals ? text("slow", {count: totals.slow_clients}) : "", totals?.slow_clients ? "warn" : "");
        const gaps = totals?.gaps_hour ?? lastHour("gaps");
        const skipped = totals?.skipped_hour ?? lastHour("skipped");
        tiles.gaps.show(`${whole(gaps)} / ${whole(skipped)}`, text(totals?.gaps_hour === null || !totals ? "of_this_page" : "last_hour"), gaps ? "warn" : "");
    }

    /** Draw the store and the alerts: null is one that has never reported or has ended, `up` false one that is silent. */
    drawParts(state) {
        const {store, alerts} = state && !missing(state) ? state : {};
        const days = text("store.days", {count: store?.days.length ?? 0});
        if (!store) this.tiles.store.show(store === null ? text("store.off") : "–");
        else if (!store.up) this.tiles.store.show(text("part.silent"), duration(store.age * 1000), "bad");
        else this.tiles.store.show(text(store.failure ? "store.down" : "store.up"), store.failure ?? `${days} · ${bytes(store.size)}`, store.failure ? "bad" : "ok");
        const failing = alerts?.targets.filter((each) => each.failing).map((each) => each.target) ?? [];
        if (!alerts) this.tiles.alerts.show(alerts === null ? text("alerts.off") : "–");
        else if (!alerts.up) this.tiles.alerts.show(text("part.silent"), duration(alerts.age * 1000), "bad");
        else this.tiles.alerts.show(text(alerts.open.length ? "alerts.open" : "alerts.none", {count: alerts.open.length}),
            failing.length ? text("alerts.failing", {targets: failing.join(", ")}) : "", alerts.open.length ? "bad" : failing.length ? "warn" : "ok");
    }

    drawRates() {
        const {rates} = service;
        const most = Math.max(1, ...rates.map((each) => Math.max(each[0], each[1])));
        this.lines.forEach(({value, line}, which) => {
            const newest = rates.at(-1)?.[which];
            value.show(newest === undefined ? "–" : whole(newest));
            const dx = LINE.width / Math.max(1, rates.length - 1);
            mark(line, "points", rates.map((each, at) => `${(at * dx).toFixed(1)},${(LINE.height - 2 - (each[which] / most) * (LINE.height - 4)).toFixed(1)}`).join(" "));
        });
    }

    drawHops(state) {
        const page = hops.page.percentiles();
        const own = {exchange_to_callback: hops.exchange.percentiles(), callback_to_publish: hops.feeder.percentiles(), publish_to_page: page};
        const found = HOPS.map((name) => {
            const told = state?.latency?.[name];
            if (told && told.p50 !== null) return [told.p50 * 1000, told.p99 * 1000];
            return own[name] ?? null;
        });
        const most = Math.max(1, ...found.map((each) => (each ? each[1] : 0)));
        // A hop of microseconds and one of seconds are seen in one picture: the bars are logarithmic, from 0.01 ms on.
        const share = (ms) => Math.max(0, Math.min(1, Math.log10(Math.max(ms, 0.01) / 0.01) / Math.log10(most / 0.01)));
        this.hops.forEach(({texts, bars}, at) => {
            const each = found[at];
            texts[0].show(each ? duration(each[0]) : "–");
            texts[1].show(each ? duration(each[1]) : "–");
            bars[0].style.transform = `scaleX(${each ? share(each[1]).toFixed(3) : 0})`;
            bars[1].style.transform = `scaleX(${each ? share(each[0]).toFixed(3) : 0})`;
        });
    }

    drawMarkets(state) {
        const now = performance.timeOrigin + performance.now();
        const passed = state ? Date.now() - state.time : 0;
        for (const {market, value, element: row} of this.ages) {
            const heard = quotes.heard.get(market);
            const told = state?.markets?.[market];
            const age = told !== undefined ? told * 1000 + Math.max(0, passed) : heard ? now - heard : null;
            value.show(age === null ? text("no_data") : duration(age));
            mark(row, "data-mark", age === null ? "none" : age < 10_000 ? "ok" : age < 60_000 ? "warn" : "bad");
        }
    }

    drawEvents(state) {
        const own = happenings.map((each) => ({
            key: each.number, at: each.at, where: text("this_page"), level: each.level,
            text: text(each.name, {...each.values, reason: reasonOf(each.values.reason), because: because(each.values.reason)}) + (each.times > 1 ? ` ×${each.times}` : ""),
        }));
        // Two events may be the same in all fields; counted from the oldest on, each keeps its row.
        const same = new Map();
        const told = (state?.events ?? []).toReversed().map((each) => {
            const [sentence, level] = reported(each.text);
            return {
                key: numbered(same, `${each.where} ${each.time} ${each.text}`), at: each.time, where: `${has(`where.${each.where}`) ? text(`where.${each.where}`) : each.where} · ${KINDS.has(each.kind) ? text(`kind.${each.kind}`) : each.kind}`,
                level: level ?? KINDS.get(each.kind) ?? "note", text: sentence,
            };
        });
        const all = [...own, ...told].sort((a, b) => b.at - a.at).slice(0, EVENTS);
        this.eventRows.show(all, (each) => each.key);
    }
}
