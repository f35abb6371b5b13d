// One console for each WebSocket of the gateway, with the documented request filled in.

import {element, mark} from "../parts/element.js";
import {Console} from "./console.js";

const DOCUMENTED = {
    realtime: {stocks: ["000001.SZ", "600519.SH"], period: "tick"},
    whole_quote: {codes: ["SH", "SZ"]},
    l2_thousand: {stocks: ["000001.SZ"]},
    download_progress: {stocks: ["000001.SZ"], period: "1d", start_time: "", end_time: ""},
    formula: {action: "subscribe", formula_name: "MA", stock_code: "000001.SZ", period: "1d", count: -1, dividend_type: "none", params: {}},
    trade: null,
};

export class Consoles {
    constructor() {
        this.consoles = Object.fromEntries(Object.entries(DOCUMENTED).map(([name, request]) => [name, new Console(`ws/${name}`, request)]));
        this.tabs = element("nav", {class: "segments paths", "data-hint": "view.consoles"}, Object.keys(DOCUMENTED).map((name) =>
            element("a", {href: `#consoles/${name}`, "data-name": name}, `/ws/${name}`)));
        this.stage = element("div", {class: "stage"});
        this.element = element("div", {class: "consoles"},
            element("header", {class: "view-head"}, element("h1", {label: "view.consoles"}), element("p", {class: "soft", label: "consoles.told"}), element("a", {href: "docs", label: "consoles.docs"})), this.tabs, this.stage);
    }

    show(detail) {
        const name = detail in DOCUMENTED ? detail : "realtime";
        for (const each of this.tabs.children) mark(each, "aria-current", each.dataset.name === name ? "page" : null);
        const chosen = this.consoles[name];
        if (this.stage.firstChild !== chosen.element) this.stage.replaceChildren(chosen.element);
        chosen.show();
    }
}
