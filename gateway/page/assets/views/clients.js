// Who is connected and what is subscribed at the terminal; both can be ended. A key with the scope `admin` sees it.

import {element, icon, ICONS, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {ask, read} from "../parts/gateway.js";
import {hasKey, onKey} from "../parts/key.js";
import {onLanguage, text} from "../parts/language.js";
import {bytes, clock, duration, whole} from "../parts/numbers.js";
import {reasonOf} from "../parts/reports.js";
import {table} from "../parts/rows.js";
import {keyDialog} from "./key_dialog.js";
import {confirmed} from "./question.js";

const EVERY = 3000;
const LIMIT = 500;

export class Clients {
    constructor() {
        this.clients = null;
        this.subscriptions = null;
        this.lacks = new Text();
        this.counted = [new Text(), new Text()];
        this.said = new Text();
        const end = (does) => (item) => element("button", {type: "button", class: "tiny", hint: "clients.end", on: {click: () => does(item)}}, icon(ICONS.close, 12));
        this.clientTable = table("clients.connected", [
            {name: "client.id", head: true, of: (each) => each.id},
            {name: "client.address", kind: "word", of: (each) => each.address},
            {name: "client.key", kind: "word", of: (each) => each.key ?? "–"},
            {name: "client.endpoint", kind: "word", of: (each) => each.endpoint},
            {name: "client.since", of: (each) => clock(each.since)},
            {name: "client.subscriptions", of: (each) => whole(each.subscriptions)},
            {name: "client.frames", of: (each) => whole(each.frames)},
            {name: "client.outbox", of: (each) => bytes(each.outbox_bytes)},
            {name: "client.skipped", of: (each) => whole(each.skipped)},
            {name: "client.lag", kind: "state-cell", of: (each) => duration(each.lag * 1000), mark: (each) => (each.slow ? "warn" : "ok")},
            {name: "client.end", make: end((each) => this.kick(each))},
        ]);
        this.topicTable = table("clients.subscribed", [
            {name: "topic.topic", head: true, of: (each) => each.topic},
            {name: "topic.state", kind: "state-cell", of: (each) => (each.state ? text(`topic.${each.state}`) : "–") + (each.reason ? `: ${reasonOf(each.reason)}` : ""), mark: (each) => ({live: "ok", pending: "warn", refused: "bad"})[each.state] ?? "none"},
            {name: "topic.seq", of: (each) => whole(each.seq)},
            {name: "topic.age", of: (each) => (each.age === null ? "–" : duration(each.age * 1000))},
            {name: "topic.clients", of: (each) => whole(each.clients)},
            {name: "topic.who", kind: "word wrap", of: (each) => each.client_ids.join(" ") || (each.workers.length ? "–" : text("topic.others"))},
            {name: "topic.end", make: end((each) => this.end(each))},
        ]);
        this.lock = element("div", {class: "lock"}, element("p", {}, this.lacks.node), element("button", {type: "button", class: "button first", label: "key.enter", on: {click: () => keyDialog()}}));
        const panel = (name, made, counted) => element("section", {class: "panel"},
            element("header", {class: "panel-head"}, element("h2", {label: `clients.${name}`}), element("span", {class: "soft"}, counted.node)),
            element("div", {class: "scroll tall", tabindex: 0, role: "region", "data-hint": `clients.${name}`}, made.table));
        this.panels = element("div", {class: "clients-panels"}, panel("connected", this.clientTable, this.counted[0]), panel("subscribed", this.topicTable, this.counted[1]));
        this.element = element("div", {class: "clients"}, element("header", {class: "view-head"}, element("h1", {label: "view.clients"}), element("p", {class: "soft", role: "status"}, this.said.node)), this.lock, this.panels);
        this.draw = this.draw.bind(this);
        onKey(() => this.element.isConnected && this.look());
        onLanguage(() => draw(this.draw));
    }

    show() {
        this.look();
    }

    hide() {
        clearTimeout(this.timer);
    }

    async look() {
        clearTimeout(this.timer);
        if (!hasKey()) {
            this.clients = this.subscriptions = null;
            this.why = "clients.needs_key";
            return draw(this.draw);
        }
        try {
            [this.clients, this.subscriptions] = await Promise.all([read(`api/clients?limit=${LIMIT}`), read(`api/subscriptions?limit=${LIMIT}`)]);
            this.why = "";
        } catch (unserved) {
            this.clients = this.subscriptions = null;
            this.why = unserved.status === 401 || unserved.status === 403 ? "clients.needs_key" : "away";
        }
        draw(this.draw);
        if (this.element.isConnected) this.timer = setTimeout(() => this.look(), EVERY);
    }

    async kick(client) {
        if (!(await confirmed(text("clients.kick", {id: client.id, address: client.address})))) return;
        await this.change(`api/clients/${encodeURIComponent(client.id)}`, client.id);
    }

    async end(topic) {
        if (!(await confirmed(text("clients.end_topic", {topic: topic.topic, count: topic.clients})))) return;
        await this.change(`api/subscriptions/${encodeURIComponent(topic.topic)}`, topic.topic);
    }

    async change(path, name) {
        try {
            const {status, body} = await ask(path, {method: "DELETE"});
            this.said.show(status < 300 ? text("clients.ended", {name}) : body.error ?? String(body));
        } catch {
            this.said.show(text("away"));
        }
        this.look();
    }

    draw() {
        if (!this.element.isConnected) return;
        this.lock.hidden = !this.why;
        this.panels.hidden = !this.clients;
        this.lacks.show(this.why ? text(this.why) : "");
        this.lock.lastChild.hidden = this.why !== "clients.needs_key";
        const counted = (answer, items) => (answer ? text(answer.next ? "clients.first" : "clients.all", {shown: whole(items.length), total: whole(answer.total)}) + (answer.complete ? "" : " · " + text("trouble.missing", {missing: answer.missing.join(", ")})) : "");
        const clients = this.clients?.clients ?? [];
        const topics = this.subscriptions?.subscriptions ?? [];
        this.counted[0].show(counted(this.clients, clients));
        this.counted[1].show(counted(this.subscriptions, topics));
        this.clientTable.rows.show(clients, (each) => each.id);
        this.topicTable.rows.show(topics, (each) => each.topic);
    }
}
