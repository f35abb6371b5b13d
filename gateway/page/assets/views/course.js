// The day's line of one code: its price and average price in steps, and the volume of each step.

import {averageOf} from "../parts/average.js";

// Steps in ms: the finest one with which the day so far has no more points than `MOST`.
const STEPS = [1000, 5000, 15_000, 60_000, 300_000];
const MOST = 1200;
// Pixels of the widest bar of the volume.
const WIDEST = 9;

export class Course {
    constructor() {
        this.fields = ["time", "lastPrice", "lastClose", "volume", "pvolume", "amount"];
        this.clear();
    }

    clear() {
        this.step = STEPS[0];
        this.times = [];
        this.prices = [];
        this.averages = [];
        this.volumes = [];
        this.volume = null;
    }

    add(tick) {
        if (!(tick.lastPrice > 0)) return;
        const before = this.volume ?? tick.volume;
        this.volume = tick.volume;
        // The volume counts from zero again on a new day.
        this.put(Math.floor(tick.time / this.step) * this.step, tick.lastPrice, averageOf(tick) || null, Math.max(0, tick.volume - before));
        if (this.times.length > MOST && this.step < STEPS.at(-1)) this.thin();
    }

    put(time, price, average, volume) {
        const last = this.times.length - 1;
        if (last >= 0 && time <= this.times[last]) {
            this.prices[last] = price;
            this.averages[last] = average;
            this.volumes[last] += volume;
            return;
        }
        this.times.push(time);
        this.prices.push(price);
        this.averages.push(average);
        this.volumes.push(volume);
    }

    thin() {
        const {times, prices, averages, volumes} = this;
        this.step = STEPS[STEPS.indexOf(this.step) + 1];
        this.times = [];
        this.prices = [];
        this.averages = [];
        this.volumes = [];
        times.forEach((time, at) => this.put(Math.floor(time / this.step) * this.step, prices[at], averages[at], volumes[at]));
    }

    columns() {
        return [this.times.map((_, at) => at), this.prices, this.averages, this.volumes];
    }

    span(low, high) {
        return [(low ?? 0) - 0.5, Math.max((low ?? 0) + 1, high ?? 1) + 0.5];
    }

    /** Return the range of prices with the day before's close in it, and room below for the volume. */
    range(low, high, below, close) {
        if (!(high > 0)) return [0, 1];
        const near = close > 0 && Math.abs(close / high - 1) < 0.02;
        const from = near ? Math.min(low, close) : low;
        const to = near ? Math.max(high, close) : high;
        const reach = Math.max(to - from, to * 2e-4) * 1.08;
        return [to - reach / (1 - below), to + reach * 0.04];
    }

    lines(Plot, colours) {
        return [
            {},
            {scale: "y", stroke: colours.accent, width: 1.6, fill: colours.accentWash, points: {show: false}},
            {scale: "y", stroke: colours.average, width: 1.2, points: {show: false}, spanGaps: true},
            {scale: "volume", paths: () => null, points: {show: false}},
        ];
    }

    /** Paint what is no line: the volume of each step, and the close of the day before. */
    paint(plot, colours, close) {
        const pen = plot.ctx;
        const {left, top, width, height} = plot.bbox;
        pen.save();
        pen.beginPath();
        pen.rect(left, top, width, height);
        pen.clip();
        const floor = plot.valToPos(0, "volume", true);
        const wide = Math.max(1, Math.min(WIDEST * devicePixelRatio, (width / Math.max(this.times.length, 2)) * 0.7));
        for (let at = 0; at < this.times.length; at++) {
            const up = at === 0 || this.prices[at] >= this.prices[at - 1];
            const y = plot.valToPos(this.volumes[at], "volume", true);
            pen.fillStyle = up ? colours.up : colours.down;
            pen.fillRect(plot.valToPos(at, "x", true) - wide / 2, y, wide, floor - y);
        }
        if (close > 0) {
            const y = Math.round(plot.valToPos(close, "y", true)) + 0.5;
            pen.strokeStyle = colours.soft;
            pen.setLineDash([4, 4]);
            pen.lineWidth = 1;
            pen.beginPath();
            pen.moveTo(left, y);
            pen.lineTo(left + width, y);
            pen.stroke();
        }
        pen.restore();
    }

    read(at, price, large, text) {
        const average = this.averages[at] ? `   ${text("fact.average")} ${price(this.averages[at])}` : "";
        return `${price(this.prices[at])}${average}   ${text("fact.volume")} ${large(this.volumes[at])}`;
    }
}
