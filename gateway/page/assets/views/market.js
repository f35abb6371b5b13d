// The market: the board, and beside it one instrument with its chart, depth and tape.

import {averageOf} from "../parts/average.js";
import {element, icon, ICONS, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {onLanguage} from "../parts/language.js";
import {large, percent, places, price, signed} from "../parts/numbers.js";
import {quotes} from "../parts/quotes.js";
import {Board} from "./board.js";
import {Chart} from "./chart.js";
import {Depth} from "./depth.js";
import {Tape} from "./tape.js";

const FACTS = [
    ["open", (tick, digits) => price(tick.open, digits)],
    ["high", (tick, digits) => price(tick.high, digits)],
    ["low", (tick, digits) => price(tick.low, digits)],
    ["close_before", (tick, digits) => price(tick.lastClose, digits)],
    ["average", (tick, digits, average) => price(average, digits)],
    ["volume", (tick) => large(tick.volume)],
    ["amount", (tick) => large(tick.amount)],
];

export class Market {
    constructor() {
        this.code = "";
        this.board = new Board((code) => this.choose(code));
        this.chart = new Chart();
        this.depth = new Depth();
        this.tape = new Tape();
        this.last = new Text();
        this.change = new Text();
        this.named = new Text();
        this.facts = FACTS.map(() => new Text());
        this.lastBox = element("output", {class: "last"}, this.last.node);
        this.changeBox = element("span", {class: "change"}, this.change.node);
        const facts = FACTS.map(([name], at) => element("div", {}, element("dt", {label: `fact.${name}`}), element("dd", {}, this.facts[at].node)));
        this.head = element("header", {class: "instrument-head"},
            element("a", {class: "tool back", href: "#market", hint: "back"}, icon(ICONS.back)),
            element("h2", {}, this.named.node), this.lastBox, this.changeBox,
            element("dl", {class: "facts"}, facts));
        this.instrument = element("div", {class: "instrument"}, this.head, this.chart.element, element("div", {class: "depth-and-tape"}, this.depth.element, this.tape.element));
        this.element = element("div", {class: "market"}, this.board.element, this.instrument);
        this.write = this.write.bind(this);
        quotes.follow((quote) => {
            if (quote.code === this.code) draw(this.write);
        });
        onLanguage(this.write);
    }

    show(detail) {
        const code = detail || this.code || this.board.codes[0] || "";
        // On a narrow screen the instrument takes the place of the board, once one is chosen.
        mark(this.element, "data-open", detail !== "");
        this.board.show();
        if (code === this.code) {
            this.chart.resume();
            this.depth.resume();
            this.tape.resume();
            return;
        }
        this.code = code;
        this.named.show(code);
        this.board.choose(code);
        this.chart.follow(code);
        this.depth.follow(code);
        this.tape.follow(code);
        this.write();
    }

    hide() {
        this.chart.pause();
        this.depth.pause();
        this.tape.pause();
    }

    choose(code) {
        location.hash = `market/${code}`;
    }

    write() {
        const tick = quotes.of.get(this.code)?.tick;
        if (!tick) {
            this.last.show("–");
            this.change.show("");
            this.facts.forEach((each) => each.show("–"));
            return;
        }
        const digits = places(this.code);
        const change = tick.lastPrice > 0 && tick.lastClose > 0 ? tick.lastPrice - tick.lastClose : NaN;
        const side = change > 0 ? "up" : change < 0 ? "down" : "";
        mark(this.lastBox, "data-side", side);
        mark(this.changeBox, "data-side", side);
        this.last.show(price(tick.lastPrice, digits));
        this.change.show(`${signed(change, digits)}  ${percent(change / tick.lastClose)}`);
        const average = averageOf(tick);
        FACTS.forEach(([, of], at) => this.facts[at].show(of(tick, digits, average)));
    }
}
