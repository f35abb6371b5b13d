// The newest tick of each code of the board, from one WebSocket for all of them.

import {draw} from "./frame.js";
import {measure} from "./hops.js";
import {count, note} from "./happenings.js";
import {Pace} from "./pace.js";
import {Socket} from "./socket.js";

/** One code: its newest tick, and why it has none. */
export class Quote {
    constructor(code) {
        this.code = code;
        this.tick = null;
        // Ticks so far, by which a row sees that it is not up to date.
        this.count = 0;
        this.refusal = "";
    }
}

class Quotes {
    constructor() {
        this.of = new Map();
        this.feed = null;
        // Ticks of all codes since the page was opened.
        this.received = 0;
        // When the newest tick of each market came, by the clock of this page.
        this.heard = new Map();
        this.listeners = [];
        this.feedListeners = [];
        this.pace = new Pace(() => this.subscribe([...this.of.keys()]));
        this.socket = new Socket("ws/realtime", {
            open: () => this.subscribe([...this.of.keys()]),
            frame: (frame) => this.take(frame),
            state: (state, reason) => this.turn(state, reason),
        });
    }

    /** Call `listener(quote, tick)` with each tick. */
    follow(listener) {
        this.listeners.push(listener);
    }

    /** Call `listener` when the state of the feed or of the connection has changed. */
    onFeed(listener) {
        this.feedListeners.push(listener);
    }

    /** Return why the gateway refuses this page: "locked" without a key, "barred" for another reason, or nothing. */
    get barred() {
        if (this.socket.state !== "refused") return "";
        return /unauthorized|forbidden/.test(this.socket.reason) ? "locked" : "barred";
    }

    /** Follow these codes and no others. */
    want(codes) {
        const wanted = new Set(codes);
        const gone = [...this.of.keys()].filter((code) => !wanted.has(code));
        const added = codes.filter((code) => !this.of.has(code));
        for (const code of gone) this.of.delete(code);
        for (const code of added) this.of.set(code, new Quote(code));
        if (gone.length) this.socket.send({action: "unsubscribe", id: "gone", stocks: gone});
        if (added.length) this.subscribe(added);
    }

    subscribe(codes) {
        if (codes.length) this.socket.send({action: "subscribe", id: "board", stocks: codes, seq: true, max_rate_ms: this.pace.ms});
    }

    take(frame) {
        switch (frame.type) {
            case "data":
                this.takeTicks(frame);
                break;
            case "subscribed":
                for (const {code, error, reason} of frame.rejected ?? []) this.refuse(code, error, reason);
                break;
            case "welcome":
                this.takeFeed({...frame, state: frame.feed});
                break;
            case "feed":
                this.takeFeed(frame);
                break;
            case "skipped":
                count(frame.reason === "feed_gap" ? "gaps" : "skipped", frame.count);
                note("note", frame.reason === "feed_gap" ? "happened.gap" : "happened.skipped", {count: frame.count});
                break;
            case "closing":
                note("warn", "happened.closing", {reason: frame.reason});
                break;
            case "error":
                if (frame.symbol) this.refuse(frame.symbol, frame.code, frame.error);
                else note("warn", "happened.refused", {reason: `${frame.code}: ${frame.error}`});
                break;
        }
    }

    takeTicks(frame) {
        const now = performance.timeOrigin + performance.now();
        for (const code in frame.data) {
            const quote = this.of.get(code);
            const records = frame.data[code];
            if (quote === undefined || !records.length) continue;
            const tick = records[records.length - 1];
            quote.tick = tick;
            quote.count += 1;
            quote.refusal = "";
            this.received += 1;
            this.heard.set(code.slice(-2), now);
            measure(frame, tick, now);
            for (const listener of this.listeners) listener(quote, tick);
        }
        this.pace.busy();
    }

    refuse(code, error, reason) {
        const quote = this.of.get(code);
        if (quote && !quote.tick) {
            quote.refusal = `${error}: ${reason}`;
            quote.count += 1;
            for (const listener of this.listeners) listener(quote, null);
        }
        note("warn", "happened.refused", {reason: `${error}: ${reason}`});
    }

    takeFeed(frame) {
        const before = this.feed;
        this.feed = {...before, ...frame};
        if (before?.epoch && frame.epoch && before.epoch !== frame.epoch) note("warn", "happened.restart");
        if (before?.state !== frame.state) {
            note(frame.state === "up" ? "ok" : frame.state === "down" ? "bad" : "warn", `happened.feed_${frame.state}`, {reason: frame.reason ?? ""});
        }
        this.tell();
    }

    turn(state, reason) {
        if (state === "waiting") note("bad", "happened.lost", {reason});
        if (state === "refused") note("bad", "happened.closed", {reason});
        if (state === "open") note("ok", "happened.connected");
        this.tell();
    }

    tell() {
        for (const listener of this.feedListeners) draw(listener);
    }
}

export const quotes = new Quotes();
