// The candles of one code and period. A bar is published each time it changes; the newest state of each counts.

const MOST = 400;
// Pixels of the widest candle.
const WIDEST = 14;

export class Candles {
    constructor(period) {
        this.period = period;
        this.step = 60_000;
        this.fields = ["time", "open", "high", "low", "close", "volume", "amount"];
        this.clear();
    }

    clear() {
        this.times = [];
        this.bars = [];
    }

    add(bar) {
        const last = this.times.length - 1;
        if (last >= 0 && bar.time <= this.times[last]) {
            const at = bar.time === this.times[last] ? last : this.times.lastIndexOf(bar.time);
            if (at >= 0) this.bars[at] = bar;
            return;
        }
        this.times.push(bar.time);
        this.bars.push(bar);
        if (this.times.length > MOST) {
            this.times.shift();
            this.bars.shift();
        }
    }

    columns() {
        const of = (name) => this.bars.map((bar) => bar[name] ?? null);
        return [this.times.map((_, at) => at), of("open"), of("high"), of("low"), of("close"), of("volume")];
    }

    /** Return the places that are shown: at least forty, so that a few candles are not as wide as the chart. */
    span(low, high) {
        const to = (high ?? 0) + 0.7;
        return [Math.min((low ?? 0) - 0.7, to - 40), to];
    }

    range(low, high, below) {
        if (!(high > 0)) return [0, 1];
        const reach = Math.max(high - low, high * 2e-4) * 1.08;
        return [high - reach / (1 - below), high + reach * 0.04];
    }

    lines() {
        const hidden = {paths: () => null, points: {show: false}};
        return [{}, ...["y", "y", "y", "y", "volume"].map((scale) => ({...hidden, scale}))];
    }

    paint(plot, colours) {
        const pen = plot.ctx;
        const {left, top, width, height} = plot.bbox;
        pen.save();
        pen.beginPath();
        pen.rect(left, top, width, height);
        pen.clip();
        const gap = plot.valToPos(1, "x", true) - plot.valToPos(0, "x", true);
        const wide = Math.max(1, Math.min(WIDEST * devicePixelRatio, gap * 0.68));
        const floor = plot.valToPos(0, "volume", true);
        const y = (value) => plot.valToPos(value, "y", true);
        for (let at = 0; at < this.bars.length; at++) {
            const {open, high, low, close, volume} = this.bars[at];
            const x = plot.valToPos(at, "x", true);
            const up = close >= open;
            pen.fillStyle = pen.strokeStyle = up ? colours.up : colours.down;
            pen.lineWidth = Math.max(1, devicePixelRatio);
            pen.beginPath();
            pen.moveTo(x, y(high));
            pen.lineTo(x, y(low));
            pen.stroke();
            const from = y(Math.max(open, close));
            pen.fillRect(x - wide / 2, from, wide, Math.max(1, y(Math.min(open, close)) - from));
            const sum = plot.valToPos(volume ?? 0, "volume", true);
            pen.globalAlpha = 0.55;
            pen.fillRect(x - wide / 2, sum, wide, floor - sum);
            pen.globalAlpha = 1;
        }
        pen.restore();
    }

    read(at, price, large, text) {
        const {open, high, low, close, volume} = this.bars[at];
        const named = [["open", open], ["high", high], ["low", low], ["close", close]].map(([name, value]) => `${text(`fact.${name}`)} ${price(value)}`);
        return `${named.join("   ")}   ${text("fact.volume")} ${large(volume)}`;
    }
}
