// Orders and fills as the trade events tell them.

// `order_status` of xtquant, and what it means for a person.
const STATUS = {48: "unreported", 49: "reporting", 50: "reported", 51: "cancelling", 52: "part_cancelling", 53: "part_cancelled", 54: "cancelled", 55: "part_filled", 56: "filled", 57: "junk"};
const LEVELS = {filled: "ok", part_filled: "note", reported: "note", junk: "bad", cancelled: "none", part_cancelled: "none"};
const BUYS = new Set([23, 27, 33, 37]);
const MOST = 500;

export const statusOf = (order) => STATUS[order.order_status] ?? "other";
export const levelOf = (order) => LEVELS[statusOf(order)] ?? "note";
export const isBuy = (each) => BUYS.has(each.order_type) || (each.order_type === undefined && each.offset_flag === 48);

/** The newest state of each order, position and account, and the last fills and events. */
export class Orders {
    constructor() {
        this.clear();
    }

    clear() {
        this.orders = new Map();
        this.fills = new Map();
        this.positions = new Map();
        this.assets = new Map();
        this.events = [];
        this.seq = 0;
    }

    /** Take an event; one that came before, after a resume, changes nothing. */
    take(event) {
        if (event.seq <= this.seq) return;
        this.seq = event.seq;
        const data = event.data ?? {};
        const account = data.account_id ?? "";
        if (event.type === "order") put(this.orders, `${account}/${data.order_id}`, {...data, seq: event.seq});
        else if (event.type === "trade") put(this.fills, `${account}/${data.traded_id}`, {...data, seq: event.seq});
        else if (event.type === "position") {
            if (data.volume > 0) put(this.positions, `${account}/${data.stock_code}`, data);
            else this.positions.delete(`${account}/${data.stock_code}`);
        } else if (event.type === "asset") put(this.assets, account, data);
        this.events.push(event);
        if (this.events.length > MOST) this.events.splice(0, this.events.length - MOST);
    }
}

function put(into, key, value) {
    // The newest one is the last.
    into.delete(key);
    into.set(key, value);
    if (into.size > MOST) into.delete(into.keys().next().value);
}
