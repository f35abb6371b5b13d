// Trade events: orders, fills, positions and the events as they come, from a position on that survives a loss.

import {element, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {note} from "../parts/happenings.js";
import {hasKey, onKey} from "../parts/key.js";
import {has, onLanguage, text} from "../parts/language.js";
import {clock, large, percent, places, price, signed, whole} from "../parts/numbers.js";
import {isBuy, levelOf, Orders, statusOf} from "../parts/orders.js";
import {reasonOf} from "../parts/reports.js";
import {table} from "../parts/rows.js";
import {Socket} from "../parts/socket.js";
import {keyDialog} from "./key_dialog.js";

// Events before the newest one that are asked for when the page has none yet.
const BACK = 1000;
const LINES = 100;
const TABS = ["orders", "fills", "positions", "events"];
const side = (each) => (isBuy(each) ? "up" : "down");
const moment = (value) => clock(value > 1e12 ? value : value * 1000);

export class Trade {
    constructor() {
        this.orders = new Orders();
        this.epoch = 0;
        this.resumes = 0;
        this.status = new Text();
        this.resumed = new Text();
        this.socket = new Socket("ws/trade", {
            open: () => {},
            frame: (frame) => this.take(frame),
            state: (state, reason) => this.turn(state, reason),
        });
        this.build();
        this.draw = this.draw.bind(this);
        onKey(() => this.show());
        onLanguage(() => draw(this.draw));
    }

    build() {
        const code = {name: "fact.code", head: true, of: (each) => each.stock_code};
        const sided = {name: "fact.side", kind: "side-cell", of: (each) => text(isBuy(each) ? "side.buy" : "side.sell"), mark: side};
        const columns = {
            orders: [
                {name: "fact.time", of: (each) => moment(each.order_time)}, code, sided,
                {name: "order.status", kind: "state-cell", of: (each) => text(`order.${statusOf(each)}`), mark: levelOf},
                {name: "fact.price", of: (each) => price(each.price, places(each.stock_code))},
                {name: "order.volume", of: (each) => whole(each.order_volume)},
                {name: "order.traded", of: (each) => whole(each.traded_volume)},
                {name: "order.average", of: (each) => price(each.traded_price, places(each.stock_code) + 1)},
                {name: "order.id", of: (each) => String(each.order_id)},
                {name: "order.told", kind: "word wrap", of: (each) => each.status_msg || ""},
            ],
            fills: [
                {name: "fact.time", of: (each) => moment(each.traded_time)}, code, sided,
                {name: "fact.price", of: (each) => price(each.traded_price, places(each.stock_code))},
                {name: "fact.volume", of: (each) => whole(each.traded_volume)},
                {name: "fact.amount", of: (each) => large(each.traded_amount)},
                {name: "fill.fee", of: (each) => price(each.commission)},
                {name: "order.id", of: (each) => String(each.order_id)},
                {name: "fill.id", of: (each) => String(each.traded_id)},
            ],
            positions: [
                code,
                {name: "position.volume", of: (each) => whole(each.volume)},
                {name: "position.usable", of: (each) => whole(each.can_use_volume)},
                {name: "position.cost", of: (each) => price(each.avg_price ?? each.open_price, 3)},
                {name: "position.last", of: (each) => price(each.last_price, places(each.stock_code))},
                {name: "position.value", of: (each) => large(each.market_value)},
                {name: "position.profit", kind: "side-cell", of: (each) => signed(each.float_profit), mark: (each) => (each.float_profit > 0 ? "up" : "down")},
                {name: "position.rate", kind: "side-cell", of: (each) => percent(each.profit_rate), mark: (each) => (each.profit_rate > 0 ? "up" : "down")},
            ],
            events: [
                {name: "event.seq", head: true, of: (each) => String(each.seq)},
                {name: "event.type", kind: "word", of: (each) => (has(`event.${each.type}`) ? text(`event.${each.type}`) : each.type)},
                {name: "event.data", kind: "word code", make: (each) => element("details", {}, element("summary", {}, JSON.stringify(each.data)), element("pre", {}, JSON.stringify(each.data, null, 2)))},
            ],
        };
        this.tab = "orders";
        this.tables = Object.fromEntries(TABS.map((name) => {
            const made = table(`trade.${name}`, columns[name]);
            const box = element("div", {class: "scroll tall", role: "region", tabindex: 0, hidden: name !== this.tab, "data-hint": `trade.${name}`, "data-table": name}, made.table, element("p", {class: "empty", label: "trade.none"}));
            return [name, {rows: made.rows, box, empty: box.lastChild}];
        }));
        this.tabs = element("div", {class: "segments", role: "group", "data-hint": "view.trade"}, TABS.map((name) =>
            element("button", {type: "button", label: `trade.${name}`, "data-tab": name, "aria-pressed": String(name === this.tab), on: {click: () => this.choose(name)}})));
        this.assets = ["total", "cash", "value", "frozen"].map((name) => {
            const value = new Text("–");
            return {name, value, element: element("div", {class: "tile small"}, element("dt", {label: `asset.${name}`}), element("dd", {}, element("b", {}, value.node)))};
        });
        this.lock = element("div", {class: "lock"}, element("p", {label: "trade.needs_key"}), element("button", {type: "button", class: "button first", label: "key.enter", on: {click: () => keyDialog()}}));
        this.open = element("div", {class: "trade-open"},
            element("dl", {class: "tiles"}, this.assets.map((each) => each.element)),
            element("section", {class: "panel"},
                element("header", {class: "panel-head"}, this.tabs, element("span", {class: "soft grow", role: "status"}, this.resumed.node)),
                Object.values(this.tables).map((each) => each.box)));
        this.element = element("div", {class: "trade"},
            element("header", {class: "view-head"}, element("h1", {label: "view.trade"}), element("p", {class: "soft", role: "status"}, this.status.node)),
            this.lock, this.open);
    }

    show() {
        this.lock.hidden = hasKey();
        this.open.hidden = !hasKey();
        if (!hasKey()) {
            this.socket.close();
            this.orders.clear();
            this.told = null;
        } else if (this.socket.state === "closed") this.socket.open();
        draw(this.draw);
    }

    choose(tab) {
        this.tab = tab;
        for (const each of this.tabs.children) mark(each, "aria-pressed", String(each.dataset.tab === tab));
        for (const [name, each] of Object.entries(this.tables)) each.box.hidden = name !== tab;
        draw(this.draw);
    }

    turn(state, reason) {
        if (state === "refused" || state === "waiting") note(state === "refused" ? "bad" : "warn", "happened.trade", {reason});
        draw(this.draw);
    }

    take(frame) {
        if (frame.type === "subscribed") {
            this.epoch = frame.epoch;
            if (frame.id === undefined) this.resume(frame.seq);
            else this.told = {after: frame.after, seq: frame.seq, at: Date.now()};
        } else if (frame.type === "error") {
            // The journal has no longer what is older; it says from where on it has all.
            if (frame.code === "resume_expired" && frame.oldest < frame.newest && !this.expired) {
                this.expired = true;
                this.orders.clear();
                this.socket.send({resume: {seq: Math.max(frame.oldest, frame.newest - BACK), epoch: frame.epoch}, id: (this.resumes += 1)});
            } else note("warn", "happened.refused", {reason: `${frame.code}: ${frame.error}`});
        } else if (typeof frame.seq === "number" && frame.data) {
            this.orders.take(frame);
        }
        draw(this.draw);
    }

    /** Ask for what the page has missed, or at first for the newest events of the journal. */
    resume(newest) {
        this.expired = false;
        const seq = this.orders.seq || Math.max(0, newest - BACK);
        this.socket.send({resume: {seq, epoch: this.epoch}, id: (this.resumes += 1)});
    }

    draw() {
        if (!this.element.isConnected) return;
        const {state, reason} = this.socket;
        this.status.show(hasKey() ? text(`socket.${state}`, {reason: reasonOf(reason)}) : "");
        this.resumed.show(this.told ? text("trade.resumed", {after: this.told.after ?? 0, newest: this.orders.seq || this.told.seq, time: clock(this.told.at)}) : "");
        const newest = (map) => [...map.values()].slice(-LINES).reverse();
        const shown = {orders: () => newest(this.orders.orders), fills: () => newest(this.orders.fills), positions: () => [...this.orders.positions.values()], events: () => this.orders.events.slice(-LINES).reverse()};
        const keys = {orders: (each) => `${each.account_id}/${each.order_id}`, fills: (each) => `${each.account_id}/${each.traded_id}`, positions: (each) => `${each.account_id}/${each.stock_code}`, events: (each) => each.seq};
        const {rows, empty} = this.tables[this.tab];
        const items = shown[this.tab]();
        rows.show(items, keys[this.tab]);
        empty.hidden = items.length > 0;
        const sum = (name) => [...this.orders.assets.values()].reduce((all, each) => all + (each[name] ?? 0), 0);
        const of = {total: "total_asset", cash: "cash", value: "market_value", frozen: "frozen_cash"};
        for (const {name, value} of this.assets) value.show(this.orders.assets.size ? sum(of[name]).toLocaleString("en-US", {minimumFractionDigits: 2, maximumFractionDigits: 2}) : "–");
    }
}
