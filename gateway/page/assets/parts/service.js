// What the gateway says of the whole service: `/api/state`, asked again and again while the view is shown.

import {draw} from "./frame.js";
import {read} from "./gateway.js";
import {onKey} from "./key.js";

const EVERY = 2000;
// Answers that are kept for the lines of rates: five minutes of them.
const KEPT = 150;

class Service {
    constructor() {
        this.state = null;
        // Why there is no state: away, key, or empty.
        this.lacks = "";
        this.rates = [];
        this.listeners = [];
        this.timer = 0;
        this.asked = this.looking = false;
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
            this.state = await read("api/state");
            this.lacks = this.state.full ? "" : "key";
            if (this.state.full) this.keepRates();
        } catch (unserved) {
            this.lacks = unserved.status === 401 || unserved.status === 403 ? "key" : "away";
            // What a key has shown is not shown without it; a gateway that is away leaves its last numbers.
            if (this.lacks === "key") this.state = null;
        } finally {
            this.looking = false;
        }
        for (const listener of this.listeners) draw(listener);
        if (this.asked) this.timer = setTimeout(() => this.look(), EVERY);
    }

    keepRates() {
        const {totals} = this.state;
        this.rates.push([totals.messages_rate, totals.frames_rate]);
        if (this.rates.length > KEPT) this.rates.shift();
    }
}

export const service = new Service();
