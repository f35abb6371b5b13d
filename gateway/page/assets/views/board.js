// The board: a row for each code, updated in place. Only rows that can be seen are written.

import {complete} from "../parts/codes.js";
import {drawing, element, icon, ICONS, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {label, onLanguage, text} from "../parts/language.js";
import {clock, large, percent, places, price, signed} from "../parts/numbers.js";
import {past} from "../parts/past.js";
import {quotes} from "../parts/quotes.js";
import {reasonOf} from "../parts/reports.js";
import {keep, setting} from "../parts/settings.js";
import {Spark} from "../parts/spark.js";

// Pixels; the style sheet has the same.
const ROW = 34;
const ROW_WITH_LEVELS = 104;
// Rows beyond both ends of what can be seen that are written too, so that scrolling shows no empty ones.
const MARGIN = 6;
const SPARK = {width: 96, height: 24};
const LEVELS = {width: 64, height: 22, count: 5};
// Milliseconds for which the colour of a changed price stays, and between two drawings of one spark line.
const FLASH = 350;
const SPARK_AGAIN = 1000;
const MOST_CODES = 2000;
// Rows that are made for one frame of the screen.
const AT_ONCE = 30;
// The columns in their order; the style sheet knows which of them a narrow board leaves out.
const COLUMNS = ["code", "spark", "last", "percent", "change", "bid", "levels", "ask", "high", "low", "volume", "amount", "time"];
const NUMBERS = new Set(["last", "percent", "change", "bid", "ask", "high", "low", "volume", "amount", "time"]);

class Row {
    constructor(code, board) {
        this.code = code;
        this.digits = places(code);
        this.drawn = -1;
        this.price = 0;
        this.flashed = 0;
        this.spark = new Spark();
        this.sparkAsked = false;
        this.sparkAt = 0;
        this.sparkStale = false;
        this.texts = {};
        this.cells = {};
        this.line = drawing("polyline", {class: "line", fill: "none"});
        this.base = drawing("line", {class: "base", x1: 0, x2: SPARK.width, y1: -9, y2: -9});
        this.bids = drawing("path", {class: "bids"});
        this.asks = drawing("path", {class: "asks"});
        const cells = COLUMNS.map((name) => this.cell(name));
        this.five = null;
        this.element = element("div", {role: "row", class: "row", tabindex: -1, "data-code": code}, cells,
            element("span", {role: "cell", class: "ends"},
                element("button", {type: "button", class: "tiny grip", tabindex: -1, "data-does": "drag", hint: "board.drag"}, icon(ICONS.drag, 14)),
                element("button", {type: "button", class: "tiny", tabindex: -1, "data-does": "remove", hint: "board.remove"}, icon(ICONS.close, 12))));
        this.element.addEventListener("focus", () => board.enter(this));
    }

    cell(name) {
        let inside;
        if (name === "spark") inside = drawing("svg", {viewBox: `0 0 ${SPARK.width} ${SPARK.height}`, preserveAspectRatio: "none", width: SPARK.width, height: SPARK.height, "aria-hidden": "true"}, this.base, this.line);
        else if (name === "levels") inside = drawing("svg", {viewBox: `0 0 ${LEVELS.width} ${LEVELS.height}`, width: LEVELS.width, height: LEVELS.height, "aria-hidden": "true"}, this.bids, this.asks);
        else {
            this.texts[name] = new Text(name === "code" ? this.code : "");
            inside = this.texts[name].node;
        }
        const cell = element("span", {role: name === "code" ? "rowheader" : "cell", class: `c-${name}`}, inside);
        this.cells[name] = cell;
        return cell;
    }

    /** Write what has changed; return whether the price's colour has to go again. */
    write(quote, now, levels) {
        this.drawn = quote.count;
        const {texts, cells} = this;
        mark(this.element, "data-refused", quote.refusal ? "" : null);
        if (quote.refusal) {
            texts.last.show(reasonOf(quote.refusal));
            return false;
        }
        const tick = quote.tick;
        if (!tick) return false;
        const {digits} = this;
        const change = tick.lastPrice > 0 && tick.lastClose > 0 ? tick.lastPrice - tick.lastClose : NaN;
        const side = change > 0 ? "up" : change < 0 ? "down" : null;
        mark(this.element, "data-side", side);
        texts.last.show(price(tick.lastPrice, digits));
        texts.percent.show(percent(change / tick.lastClose));
        texts.change.show(signed(change, digits));
        texts.bid.show(price(tick.bidPrice?.[0], digits));
        texts.ask.show(price(tick.askPrice?.[0], digits));
        texts.high.show(price(tick.high, digits));
        texts.low.show(price(tick.low, digits));
        texts.volume.show(large(tick.volume));
        texts.amount.show(large(tick.amount));
        texts.time.show(clock(tick.time));
        this.writeLevels(tick);
        if (levels) this.writeFive(tick);
        this.sparkStale = true;
        const before = this.price;
        this.price = tick.lastPrice;
        if (!before || before === tick.lastPrice) return false;
        mark(cells.last, "data-flash", tick.lastPrice > before ? "up" : "down");
        this.flashed = now;
        return true;
    }

    writeLevels(tick) {
        const most = Math.max(1, ...(tick.bidVol ?? []).slice(0, LEVELS.count), ...(tick.askVol ?? []).slice(0, LEVELS.count));
        const bar = (volumes, at, x) => {
            const height = Math.round(((volumes?.[at] ?? 0) / most) * (LEVELS.height - 1));
            return height ? `M${x} ${LEVELS.height}v${-height}h5v${height}z` : "";
        };
        let bids = "";
        let asks = "";
        for (let at = 0; at < LEVELS.count; at++) {
            bids += bar(tick.bidVol, at, LEVELS.width / 2 - 7 - at * 6);
            asks += bar(tick.askVol, at, LEVELS.width / 2 + 2 + at * 6);
        }
        mark(this.bids, "d", bids);
        mark(this.asks, "d", asks);
    }

    /** Write the five levels as numbers, in a line of their own below the row. */
    writeFive(tick) {
        if (!this.five) {
            this.five = {texts: []};
            const side = (name) => element("span", {class: `five-side ${name}`}, Array.from({length: LEVELS.count}, (_, at) => {
                const pair = [new Text(), new Text()];
                this.five.texts.push(pair);
                return element("span", {class: "level"}, element("i", {}, String(at + 1)), element("b", {}, pair[0].node), element("span", {}, pair[1].node));
            }));
            this.element.append(element("span", {role: "cell", class: "five"}, side("bid"), side("ask")));
        }
        this.five.texts.forEach(([at, volume], place) => {
            const level = place % LEVELS.count;
            const bid = place < LEVELS.count;
            at.show(price((bid ? tick.bidPrice : tick.askPrice)?.[level], this.digits));
            volume.show(large((bid ? tick.bidVol : tick.askVol)?.[level]));
        });
    }

    drawSpark(now, close) {
        if (!this.sparkStale || now - this.sparkAt < SPARK_AGAIN) return;
        this.sparkAt = now;
        this.sparkStale = false;
        const {points, base} = this.spark.line(SPARK.width, SPARK.height, close);
        mark(this.line, "points", points);
        if (base !== null) {
            mark(this.base, "y1", base);
            mark(this.base, "y2", base);
        }
    }
}

export class Board {
    /** Call `chosen(code)` when a person chooses a code. */
    constructor(chosen) {
        this.chosen = chosen;
        this.codes = [...setting("codes")];
        this.rows = new Map();
        this.current = null;
        this.flashing = new Set();
        this.counted = new Text();
        this.said = new Text();
        this.build();
        this.draw = this.draw.bind(this);
        quotes.follow((quote, tick) => this.take(quote, tick));
        onLanguage(() => this.rewrite());
        this.grow = this.grow.bind(this);
        this.grow();
        this.count();
    }

    build() {
        this.input = element("input", {id: "board-add", type: "text", autocomplete: "off", spellcheck: "false", "data-placeholder": "board.placeholder"});
        const form = element("form", {class: "adder", on: {submit: (event) => this.submit(event)}},
            element("label", {class: "unseen", for: "board-add", label: "board.add"}), this.input,
            element("button", {type: "submit", class: "button", hint: "board.add"}, icon(ICONS.add)));
        this.levels = element("button", {type: "button", class: "button", label: "board.levels", "aria-pressed": String(setting("levels")), on: {click: () => this.toggleLevels()}});
        const heads = COLUMNS.map((name) => element("span", {role: "columnheader", class: `c-${name}${NUMBERS.has(name) ? "" : " word"}`, label: `column.${name}`}));
        this.body = element("div", {role: "rowgroup", class: "rows", on: {
            scroll: () => draw(this.draw),
            click: (event) => this.click(event),
            keydown: (event) => this.press(event),
            pointerdown: (event) => this.grab(event),
        }});
        this.grid = element("div", {role: "table", class: "grid", "data-hint": "view.board"},
            element("div", {role: "rowgroup"}, element("div", {role: "row", class: "row heads"}, heads, element("span", {role: "columnheader", class: "ends"}, element("span", {class: "unseen", label: "board.order"})))),
            this.body);
        mark(this.grid, "data-levels", setting("levels") || null);
        this.element = element("section", {class: "panel board", "aria-labelledby": "board-title"},
            element("header", {class: "panel-head"}, element("h2", {id: "board-title", label: "view.board"}), element("span", {class: "soft"}, this.counted.node), this.levels, form),
            this.grid,
            element("p", {class: "unseen", role: "status"}, this.said.node));
        new ResizeObserver(() => draw(this.draw)).observe(this.body);
    }

    show() {
        draw(this.draw);
    }

    get height() {
        return setting("levels") ? ROW_WITH_LEVELS : ROW;
    }

    insert(code) {
        const row = new Row(code, this);
        this.rows.set(code, row);
        this.body.append(row.element);
        label(row.element);
        if (!this.current) this.enter(row);
    }

    /** Make the next rows; all rows of a long board at once would stop the page for a moment. */
    grow() {
        let room = AT_ONCE;
        for (const code of this.codes) {
            if (this.rows.has(code)) continue;
            if (!room--) return draw(this.grow);
            this.insert(code);
        }
        draw(this.draw);
    }

    count() {
        this.counted.show(text("board.count", {count: this.codes.length}));
        mark(this.grid, "aria-rowcount", this.codes.length + 1);
    }

    /** Take a tick; the row is written with the next frame, if it can be seen. */
    take(quote, tick) {
        const row = this.rows.get(quote.code);
        if (!row) return;
        if (tick && row.spark.add(tick.time, tick.lastPrice)) row.sparkStale = true;
        draw(this.draw);
    }

    draw() {
        if (!this.element.isConnected) return;
        const now = performance.now();
        const {height} = this;
        const from = Math.max(0, Math.floor(this.body.scrollTop / height) - MARGIN);
        const until = Math.min(this.codes.length, Math.ceil((this.body.scrollTop + this.body.clientHeight) / height) + MARGIN);
        const levels = setting("levels");
        for (let at = from; at < until; at++) {
            const code = this.codes[at];
            const row = this.rows.get(code);
            const quote = quotes.of.get(code);
            if (!row || !quote) continue;
            if (row.drawn !== quote.count && row.write(quote, now, levels)) this.flashing.add(row);
            if (!row.sparkAsked && quote.tick) {
                row.sparkAsked = true;
                past.ask(code, (times, prices) => {
                    row.spark.precede(times, prices);
                    row.sparkStale = true;
                    draw(this.draw);
                });
            }
            row.drawSpark(now, quote.tick?.lastClose);
        }
        for (const row of this.flashing) {
            if (now - row.flashed >= FLASH) {
                mark(row.cells.last, "data-flash", null);
                this.flashing.delete(row);
            }
        }
        if (this.flashing.size && !this.fading) {
            this.fading = setTimeout(() => {
                this.fading = 0;
                draw(this.draw);
            }, FLASH);
        }
    }

    rewrite() {
        for (const row of this.rows.values()) row.drawn = -1;
        this.count();
        draw(this.draw);
    }

    toggleLevels() {
        keep("levels", !setting("levels"));
        mark(this.levels, "aria-pressed", String(setting("levels")));
        mark(this.grid, "data-levels", setting("levels") || null);
        this.rewrite();
    }

    /** Add the codes of the text that a person has entered; six digits become the code that they usually mean. */
    submit(event) {
        event.preventDefault();
        const named = this.input.value.toUpperCase().split(/[\s,;，；、]+/).filter(Boolean).map(complete);
        const added = [...new Set(named)].filter((code) => !this.rows.has(code)).slice(0, MOST_CODES - this.codes.length);
        this.input.value = "";
        this.codes.push(...added);
        quotes.want(this.codes);
        this.grow();
        this.keepOrder();
        if (!added.length) return;
        this.said.show(text("board.added", {codes: added.slice(0, 5).join(", ")}));
        this.body.scrollTop = this.body.scrollHeight;
    }

    remove(row) {
        const at = this.codes.indexOf(row.code);
        this.codes.splice(at, 1);
        this.rows.delete(row.code);
        this.flashing.delete(row);
        const next = this.rows.get(this.codes[Math.min(at, this.codes.length - 1)]);
        const focused = row.element.contains(document.activeElement);
        row.element.remove();
        quotes.want(this.codes);
        this.keepOrder();
        this.said.show(text("board.removed", {codes: row.code}));
        if (this.current === row) this.current = null;
        if (next) {
            this.enter(next);
            if (focused) next.element.focus();
        }
    }

    /** Put a row before the one at a place. */
    move(row, to) {
        const from = this.codes.indexOf(row.code);
        const place = Math.max(0, Math.min(this.codes.length - 1, to));
        if (place === from) return;
        this.codes.splice(from, 1);
        this.codes.splice(place, 0, row.code);
        const after = this.rows.get(this.codes[place + 1]);
        this.body.insertBefore(row.element, after ? after.element : null);
        this.said.show(text("board.moved", {code: row.code, place: place + 1}));
    }

    keepOrder() {
        keep("codes", this.codes);
        this.count();
        draw(this.draw);
    }

    /** Let the keyboard enter the table at this row. */
    enter(row) {
        if (this.current && this.current !== row) this.current.element.tabIndex = -1;
        this.current = row;
        row.element.tabIndex = 0;
    }

    choose(code) {
        for (const row of this.rows.values()) mark(row.element, "data-chosen", row.code === code ? "" : null);
    }

    rowOf(event) {
        const found = event.target.closest(".row");
        return found && this.rows.get(found.dataset.code);
    }

    click(event) {
        const row = this.rowOf(event);
        if (!row) return;
        const does = event.target.closest("[data-does]")?.dataset.does;
        if (does === "remove") this.remove(row);
        else if (!does) this.chosen(row.code);
    }

    press(event) {
        const row = this.rowOf(event);
        if (!row || event.ctrlKey || event.metaKey) return;
        const at = this.codes.indexOf(row.code);
        const steps = {ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -this.codes.length, End: this.codes.length};
        if (event.key in steps) {
            if (event.altKey) {
                this.move(row, at + steps[event.key]);
                this.keepOrder();
                row.element.focus();
            } else {
                const to = Math.max(0, Math.min(this.codes.length - 1, at + steps[event.key]));
                this.rows.get(this.codes[to])?.element.focus();
            }
        } else if (event.key === "Enter") this.chosen(row.code);
        else if (event.key === "Delete" || event.key === "Backspace") this.remove(row);
        else return;
        event.preventDefault();
    }

    /** Drag a row by its handle, with a mouse, a pen or a finger. */
    grab(event) {
        const row = event.target.closest('[data-does="drag"]') && this.rowOf(event);
        if (!row) return;
        event.preventDefault();
        mark(row.element, "data-dragged", "");
        const go = (moved) => {
            const box = this.body.getBoundingClientRect();
            this.move(row, Math.floor((moved.clientY - box.top + this.body.scrollTop) / this.height));
            if (moved.clientY < box.top + ROW) this.body.scrollTop -= ROW / 2;
            if (moved.clientY > box.bottom - ROW) this.body.scrollTop += ROW / 2;
        };
        const end = () => {
            mark(row.element, "data-dragged", null);
            removeEventListener("pointermove", go);
            removeEventListener("pointerup", end);
            removeEventListener("pointercancel", end);
            this.keepOrder();
        };
        addEventListener("pointermove", go);
        addEventListener("pointerup", end);
        addEventListener("pointercancel", end);
    }
}
