// What the gateway says of the whole service: `/api/state`, or of one worker `/readyz` where that is not served.

import {draw} from "./frame.js";
import {ask, read, Unserved} from "./gateway.js";
import {onKey} from "./key.js";

const EVERY = 2000;
// Answers that are kept for the lines of rates: five minutes of them.
const KEPT = 150;

class Service {
    constructor() {
        this.state = null;
        // Why there is no state: away, key, or empty.
        this.lacks = "";
        // Whether the state is of all workers.
        this.whole = true;
        this.rates = [];
        this.listeners = [];
        this.timer = 0;
        this.asked = this.looking = false;
        this.before = null;
        onKey(() => this.asked && this.look());
    }

    onState(listener) {
        this.listeners.push(listener);
    }

    start() {
        this.asked = true;
        this.look();
    }

    stop() {
        this.asked = false;
        clearTimeout(this.timer);
    }

    async look() {
        clearTimeout(this.timer);
        if (this.looking) return;
        this.looking = true;
        try {
            this.state = this.whole ? await this.readAll() : await this.readOne();
            this.lacks = this.state.full ? "" : "key";
            if (this.state.full) this.keepRates();
        } catch (unserved) {
            this.lacks = unserved.status === 401 || unserved.status === 403 ? "key" : "away";
        } finally {
            this.looking = false;
        }
        for (const listener of this.listeners) draw(listener);
        if (this.asked) this.timer = setTimeout(() => this.look(), EVERY);
    }

    async readAll() {
        try {
            return await read("api/state");
        } catch (unserved) {
            if (!(unserved instanceof Unserved) || unserved.status !== 404) throw unserved;
            this.whole = false;
            return this.readOne();
        }
    }

    /** Return what one worker says, in the fields of the state of all. */
    async readOne() {
        const {status, body} = await ask("readyz");
        if (status === 401 || status === 403 || typeof body !== "object") throw new Unserved(status, "readyz");
        const now = Date.now();
        if (body.worker === undefined) return {full: false, time: now};
        const before = this.before?.worker === body.worker ? this.before : null;
        const seconds = before ? (now - before.now) / 1000 : 0;
        const rate = (name) => (seconds > 0 ? (body[name] - before[name]) / seconds : 0);
        const totals = {
            workers: null, clients: body.connections, topics: body.topics, messages_rate: rate("frames_received"),
            frames_rate: rate("frames_sent"), bytes_rate: rate("bytes_sent"), waiting_bytes: null, slow_clients: body.slow_clients,
            lag: body.client_lag, gaps_hour: null, lost_hour: null, skipped_hour: null,
        };
        this.before = {...body, now};
        return {...body, full: true, time: now, totals, workers: [], latency: null, events: [], markets: {}, feeder: null, complete: true, missing: []};
    }

    keepRates() {
        const {totals} = this.state;
        this.rates.push([totals.messages_rate, totals.frames_rate]);
        if (this.rates.length > KEPT) this.rates.shift();
    }
}

export const service = new Service();
