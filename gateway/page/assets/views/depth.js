// The depth of one code: its curve up to a thousand levels, and a ladder of the best ones.

import {drawBook} from "../parts/book.js";
import {isIndex} from "../parts/codes.js";
import {element, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {onLanguage, text} from "../parts/language.js";
import {look, onLook} from "../parts/look.js";
import {large, places, price} from "../parts/numbers.js";
import {quotes} from "../parts/quotes.js";
import {reasonOf, refusalOf} from "../parts/reports.js";
import {Socket} from "../parts/socket.js";

const REACHES = [20, 100, 1000];
// Levels of each side of the ladder.
const RUNGS = 10;
const PACE_MS = 200;

export class Depth {
    constructor() {
        this.code = "";
        this.reach = 100;
        this.record = null;
        this.refusal = "";
        this.colours = null;
        this.note = new Text();
        this.socket = new Socket("ws/l2_thousand", {
            open: () => this.subscribe(),
            frame: (frame) => this.take(frame),
            state: () => this.tell(),
        });
        this.reaches = element("div", {class: "segments", role: "group", "data-hint": "depth.levels"}, REACHES.map((levels) =>
            element("button", {type: "button", "data-levels": levels, "aria-pressed": String(levels === this.reach), on: {click: () => this.choose(levels)}}, String(levels))));
        this.canvas = element("canvas", {class: "curve", role: "img", "data-hint": "depth.curve"});
        this.rungs = [];
        const rung = (side, level) => {
            const texts = [new Text(), new Text(), new Text()];
            const bar = element("i", {class: "bar"});
            const row = element("tr", {class: side}, element("th", {scope: "row"}, String(level + 1)), ...texts.map((each) => element("td", {}, each.node)), element("td", {class: "bar-cell", "aria-hidden": "true"}, bar));
            this.rungs.push({side, level, texts, bar});
            return row;
        };
        const count = Array.from({length: RUNGS}, (_, at) => at);
        this.spread = new Text();
        this.ladder = element("table", {class: "ladder", "data-hint": "depth.ladder"},
            element("thead", {}, element("tr", {}, element("th", {scope: "col", label: "depth.level"}), ["price", "volume", "sum"].map((name) => element("th", {scope: "col", label: `fact.${name}`})), element("td"))),
            element("tbody", {}, count.toReversed().map((level) => rung("ask", level)),
                element("tr", {class: "spread"}, element("td", {colspan: 5}, this.spread.node)),
                count.map((level) => rung("bid", level))));
        this.body = element("div", {class: "depth-body"}, this.canvas, this.ladder);
        this.element = element("section", {class: "panel depth", "aria-labelledby": "depth-title"},
            element("header", {class: "panel-head"}, element("h3", {id: "depth-title", label: "view.depth"}), this.reaches),
            this.body,
            element("p", {class: "note", role: "status"}, this.note.node));
        this.draw = this.draw.bind(this);
        onLook(() => {
            this.colours = null;
            draw(this.draw);
        });
        onLanguage(() => {
            this.tell();
            draw(this.draw);
        });
        quotes.follow((quote) => {
            // Without depth the ladder has the five levels of the quote.
            if (quote.code === this.code && !this.record) draw(this.draw);
        });
        new ResizeObserver(() => draw(this.draw)).observe(this.canvas);
    }

    follow(code) {
        this.code = code;
        this.begin();
    }

    choose(reach) {
        this.reach = reach;
        for (const each of this.reaches.children) mark(each, "aria-pressed", String(Number(each.dataset.levels) === reach));
        this.begin();
    }

    begin() {
        this.record = null;
        this.refusal = "";
        draw(this.draw);
        this.note.show("");
        this.body.hidden = this.reaches.hidden = isIndex(this.code);
        if (isIndex(this.code)) {
            this.socket.close();
            this.tell();
        } else if (this.code) this.socket.open();
    }

    resume() {
        if (this.socket.state === "closed" && this.code && !isIndex(this.code)) this.begin();
    }

    pause() {
        this.socket.close();
    }

    subscribe() {
        this.socket.send({action: "subscribe", id: "depth", stocks: [this.code], gear_num: this.reach === 1000 ? 0 : this.reach, seq: true, max_rate_ms: PACE_MS});
    }

    take(frame) {
        if (frame.type === "data") {
            const records = frame.data[this.code];
            if (!records?.length) return;
            this.record = records.at(-1);
            this.newest = frame.seq;
            draw(this.draw);
        } else if (frame.type === "subscribed") {
            this.refusal = refusalOf(frame.rejected?.[0]);
            this.tell();
        } else if (frame.type === "error") {
            this.refusal = refusalOf(frame);
            this.tell();
        }
    }

    tell() {
        const {state, reason} = this.socket;
        if (isIndex(this.code)) this.note.show(text("depth.index"));
        else if (state === "waiting" || state === "refused") this.note.show(text(`socket.${state}`, {reason: reasonOf(reason)}));
        else this.note.show(this.refusal ? text("depth.refused", {reason: this.refusal}) : "");
    }

    draw() {
        if (!this.element.isConnected) return;
        this.colours ??= look();
        const digits = places(this.code);
        const tick = quotes.of.get(this.code)?.tick;
        const record = this.record ?? (tick ? {bidPrice: tick.bidPrice, bidVolume: tick.bidVol, askPrice: tick.askPrice, askVolume: tick.askVol} : {});
        drawBook(this.canvas, record, this.reach, this.colours, {price: (value) => price(value, digits), volume: large});
        this.writeLadder(record, digits);
        if (this.newest) {
            // The gateway sends the next depth at the pace at which these are drawn.
            this.socket.send({action: "ack", seq: this.newest});
            this.newest = 0;
        }
    }

    writeLadder(record, digits) {
        const sides = {ask: [record.askPrice ?? [], record.askVolume ?? []], bid: [record.bidPrice ?? [], record.bidVolume ?? []]};
        const most = Math.max(1, ...sides.ask[1].slice(0, RUNGS), ...sides.bid[1].slice(0, RUNGS));
        const sums = {ask: 0, bid: 0};
        const sumsOf = {ask: [], bid: []};
        for (const side of ["ask", "bid"]) for (let at = 0; at < RUNGS; at++) sumsOf[side].push((sums[side] += sides[side][1][at] ?? 0));
        for (const {side, level, texts, bar} of this.rungs) {
            const [prices, volumes] = sides[side];
            const there = prices[level] > 0;
            texts[0].show(price(prices[level], digits));
            texts[1].show(there ? large(volumes[level]) : "");
            texts[2].show(there ? large(sumsOf[side][level]) : "");
            bar.style.transform = `scaleX(${there ? (volumes[level] / most).toFixed(3) : 0})`;
        }
        const [ask, bid] = [sides.ask[0][0], sides.bid[0][0]];
        this.spread.show(ask > 0 && bid > 0 ? text("depth.spread", {spread: (ask - bid).toFixed(digits)}) : "");
    }
}
