// The day so far of codes, from the store (docs/websocket.md, "The day so far"): some codes at a time, newest wish first.

import {Socket} from "./socket.js";

// Codes of one request. The gateway reads two of them at a time for a socket, so more would not come sooner.
const AT_ONCE = 4;
const UNTIL = "23:59:59.999";

class Past {
    constructor() {
        this.waiting = new Map();
        this.running = new Map();
        this.number = 0;
        this.socket = new Socket("ws/realtime", {
            open: () => this.again(),
            frame: (frame) => this.take(frame),
        });
    }

    /** Call `done(times, prices)` once with the prices of the day so far; both are empty where nothing is stored. */
    ask(code, done) {
        if (this.waiting.has(code) || this.running.has(code)) return;
        this.waiting.set(code, {code, done, times: [], prices: []});
        if (this.socket.state === "closed") this.socket.open();
        else this.next();
    }

    again() {
        for (const [code, wish] of this.running) {
            wish.times.length = wish.prices.length = 0;
            this.waiting.set(code, wish);
        }
        this.running.clear();
        this.next();
    }

    next() {
        if (this.running.size || !this.waiting.size || this.socket.state !== "open") return;
        const wishes = [...this.waiting.values()].slice(-AT_ONCE);
        for (const wish of wishes) {
            this.waiting.delete(wish.code);
            this.running.set(wish.code, wish);
        }
        this.number += 1;
        const stocks = wishes.map((wish) => wish.code);
        this.socket.send({action: "subscribe", id: this.number, stocks, fields: ["time", "lastPrice"], start: "00:00", end: UNTIL});
    }

    take(frame) {
        if (frame.type === undefined) {
            for (const code in frame) {
                const wish = this.running.get(code);
                for (const record of wish ? frame[code] : []) {
                    wish.times.push(record.time);
                    wish.prices.push(record.lastPrice);
                }
            }
        } else if ((frame.type === "end" || frame.type === "error") && frame.id === this.number) {
            const ended = [...this.running.values()];
            this.running.clear();
            for (const wish of ended) wish.done(wish.times, wish.prices);
            this.next();
        }
    }
}

export const past = new Past();
