// The tape of one code: its prints as they come, or where the source has none, what was dealt between two ticks.

import {isIndex} from "../parts/codes.js";
import {element, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {onLanguage, text} from "../parts/language.js";
import {clock, large, places, price, whole} from "../parts/numbers.js";
import {quotes} from "../parts/quotes.js";
import {reasonOf, refusalOf} from "../parts/reports.js";
import {Socket} from "../parts/socket.js";

const LINES = 40;
// `tradeFlag` of a print.
const SIDES = {1: "up", 2: "down", 3: "cancel"};

export class Tape {
    constructor() {
        this.code = "";
        this.prints = [];
        this.refusal = "";
        this.volume = null;
        this.note = new Text();
        this.socket = new Socket("ws/realtime", {
            open: () => this.subscribe(),
            frame: (frame) => this.take(frame),
            state: () => this.tell(),
        });
        this.lines = Array.from({length: LINES}, () => {
            const texts = [new Text(), new Text(), new Text(), new Text()];
            return {texts, row: element("tr", {}, texts.map((each) => element("td", {}, each.node)))};
        });
        this.element = element("section", {class: "panel tape", "aria-labelledby": "tape-title"},
            element("header", {class: "panel-head"}, element("h3", {id: "tape-title", label: "view.tape"})),
            element("div", {class: "scroll", tabindex: 0, "data-hint": "view.tape", role: "region"}, element("table", {},
                element("thead", {}, element("tr", {}, ["time", "price", "volume", "side"].map((name) => element("th", {scope: "col", label: `fact.${name}`})))),
                element("tbody", {}, this.lines.map(({row}) => row)))),
            element("p", {class: "note", role: "status"}, this.note.node));
        this.draw = this.draw.bind(this);
        onLanguage(() => {
            this.tell();
            draw(this.draw);
        });
        quotes.follow((quote, tick) => this.deal(quote, tick));
    }

    follow(code) {
        this.code = code;
        this.begin();
    }

    begin() {
        this.prints = [];
        this.refusal = "";
        this.volume = null;
        draw(this.draw);
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
        this.socket.send({action: "subscribe", id: "tape", stocks: [this.code], period: "l2transaction"});
    }

    take(frame) {
        if (frame.type === undefined) {
            for (const print of frame[this.code] ?? []) this.print(print.time, print.price, print.volume, SIDES[print.tradeFlag] ?? "", "shares");
        } else if (frame.type === "subscribed") {
            this.refusal = refusalOf(frame.rejected?.[0]);
            this.tell();
        } else if (frame.type === "error") {
            this.refusal = refusalOf(frame);
            this.tell();
        }
    }

    /** Take a tick: what was dealt since the one before, where the source gives no prints. */
    deal(quote, tick) {
        if (quote.code !== this.code || !tick || !this.isWithout) return;
        const before = this.volume;
        this.volume = tick.volume;
        if (before === null || tick.volume <= before) return;
        const side = tick.lastPrice >= tick.askPrice?.[0] ? "up" : tick.lastPrice <= tick.bidPrice?.[0] ? "down" : "";
        this.print(tick.time, tick.lastPrice, tick.volume - before, side, "lots");
    }

    get isWithout() {
        return isIndex(this.code) || this.refusal !== "" || this.socket.state === "refused";
    }

    print(time, at, volume, side, unit) {
        this.prints.push({time, at, volume, side, unit});
        if (this.prints.length > 4 * LINES) this.prints.splice(0, this.prints.length - LINES);
        draw(this.draw);
    }

    tell() {
        const {state, reason} = this.socket;
        if (isIndex(this.code)) this.note.show(text("tape.index"));
        else if (state === "waiting") this.note.show(text("socket.waiting", {reason: reasonOf(reason)}));
        else this.note.show(this.isWithout ? text("tape.of_ticks") : "");
    }

    draw() {
        if (!this.element.isConnected) return;
        const digits = places(this.code);
        const newest = this.prints.length - 1;
        for (let at = 0; at < LINES; at++) {
            const {texts, row} = this.lines[at];
            const print = this.prints[newest - at];
            mark(row, "data-side", print ? print.side : null);
            texts[0].show(print ? clock(print.time, print.unit === "shares") : "");
            texts[1].show(print ? (print.side === "cancel" ? "–" : price(print.at, digits)) : "");
            texts[2].show(print ? (print.unit === "shares" ? whole(print.volume) : large(print.volume)) : "");
            texts[3].show(print?.side ? text(`side.${print.side}`) : "");
        }
    }
}
