// How long records take, hop by hop, as the page measures it: their last few hundred, and percentiles of these.

const KEPT = 512;

class Hop {
    constructor() {
        this.ring = new Float64Array(KEPT);
        this.count = 0;
    }

    add(ms) {
        this.ring[this.count++ % KEPT] = ms;
    }

    /** Return the percentiles `[50, 99]` in ms; null before the first record. */
    percentiles() {
        const size = Math.min(this.count, KEPT);
        if (!size) return null;
        const sorted = this.ring.slice(0, size).sort();
        return [sorted[Math.floor((size - 1) * 0.5)], sorted[Math.floor((size - 1) * 0.99)]];
    }
}

// From the exchange to the feeder's callback, from there to the publication, and from there to this page.
export const hops = {exchange: new Hop(), feeder: new Hop(), page: new Hop()};

/** Take the times of one data frame whose newest record is `record`; a last value has none. */
export function measure(frame, record, now) {
    if (frame.time === null || frame.time === undefined) return;
    if (record.time > 0) hops.exchange.add(frame.time - record.time);
    hops.feeder.add(frame.published - frame.time);
    hops.page.add(now - frame.published);
}
