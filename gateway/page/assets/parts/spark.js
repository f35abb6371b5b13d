// The course of one code's price over the day in a few points, however many ticks it had.

const MOST = 160;
const FIRST_STEP = 3000;

export class Spark {
    constructor() {
        this.times = [];
        this.prices = [];
        // Milliseconds that one point stands for.
        this.step = FIRST_STEP;
    }

    /** Take a price at a time that is not before the newest one; return whether the line has changed. */
    add(time, price) {
        if (!(time > 0) || !(price > 0)) return false;
        const slot = Math.floor(time / this.step);
        const last = this.times.length - 1;
        if (last >= 0 && slot <= this.times[last]) {
            if (slot < this.times[last] || this.prices[last] === price) return false;
            this.prices[last] = price;
            return true;
        }
        this.times.push(slot);
        this.prices.push(price);
        if (this.times.length > MOST) this.thin();
        return true;
    }

    /** Put what was before in front of what came since. */
    precede(times, prices) {
        const {times: own, prices: since, step} = this;
        this.times = [];
        this.prices = [];
        for (let at = 0; at < times.length; at++) this.add(times[at], prices[at]);
        for (let at = 0; at < own.length; at++) this.add(own[at] * step, since[at]);
    }

    /** Keep the last price of each two steps. */
    thin() {
        this.step *= 2;
        const {times, prices} = this;
        this.times = [];
        this.prices = [];
        for (let at = 0; at < times.length; at++) {
            const slot = times[at] >> 1;
            const last = this.times.length - 1;
            if (last >= 0 && this.times[last] === slot) this.prices[last] = prices[at];
            else {
                this.times.push(slot);
                this.prices.push(prices[at]);
            }
        }
    }

    /** Return the points of a polyline in a box of this size, and the height of `close` in it. */
    line(width, height, close) {
        const {prices} = this;
        if (prices.length < 2) return {points: "", base: null};
        let low = close > 0 ? close : prices[0];
        let high = low;
        for (const each of prices) {
            if (each < low) low = each;
            if (each > high) high = each;
        }
        const scale = high > low ? (height - 2) / (high - low) : 0;
        const y = (value) => (scale ? height - 1 - (value - low) * scale : height / 2).toFixed(1);
        const dx = width / (prices.length - 1);
        let points = "";
        for (let at = 0; at < prices.length; at++) points += `${(at * dx).toFixed(1)},${y(prices[at])} `;
        return {points, base: close > 0 ? y(close) : null};
    }
}
