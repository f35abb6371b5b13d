// A console of one URL: a request, the frames that come, and the same as a program. It speaks the documented layer.

import {element, icon, ICONS, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {shown} from "../parts/key.js";
import {socketAddress} from "../parts/gateway.js";
import {label, onLanguage, text} from "../parts/language.js";
import {bytes, clock, whole} from "../parts/numbers.js";
import {reasonOf} from "../parts/reports.js";
import * as samples from "../parts/samples.js";

const LINES = 100;
// Characters of a frame that a line shows; the whole frame opens with the line.
const LINE = 400;
const WHOLE = 200_000;

/** Return JSON as the documents write it: a blank behind each comma and colon. */
function written(request) {
    return JSON.stringify(request, null, 1).replace(/\n\s*/g, " ").replace(/([[{]) /g, "$1").replace(/ ([\]}])/g, "$1");
}

export class Console {
    constructor(path, request) {
        this.path = path;
        this.keyed = path === "ws/trade";
        this.frames = 0;
        this.size = 0;
        this.paused = false;
        this.kept = [];
        this.state = "closed";
        this.reason = "";
        this.build(request);
        this.draw = this.draw.bind(this);
        onLanguage(() => draw(this.draw));
    }

    build(request) {
        const id = this.path.replace("/", "-");
        this.input = element("textarea", {id, rows: request ? 5 : 1, spellcheck: "false", autocomplete: "off", "data-placeholder": "console.nothing"});
        this.input.value = request ? written(request) : "";
        this.input.addEventListener("keydown", (event) => {
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.send();
        });
        this.status = new Text();
        this.counted = new Text();
        this.told = new Text();
        const button = (name, path, does, more = {}) => element("button", {type: "button", class: "button", "data-does": name, on: {click: does}, ...more}, icon(path, 14), element("span", {label: `console.${name}`}));
        this.pauseButton = button("pause", ICONS.pause, () => this.pause(), {"aria-pressed": "false"});
        this.lines = Array.from({length: LINES}, () => {
            const texts = [new Text(), new Text(), new Text()];
            const inside = element("pre", {});
            const line = element("details", {hidden: true}, element("summary", {}, texts.map((each, at) => element("span", {class: ["time", "size", "body"][at]}, each.node))), inside);
            line.addEventListener("toggle", () => {
                if (line.open && !this.paused) this.pause();
                inside.textContent = line.open ? line.frame?.slice(0, WHOLE) ?? "" : "";
            });
            return {texts, line};
        });
        this.element = element("section", {class: "panel console", "aria-label": `/${this.path}`},
            element("header", {class: "panel-head"}, element("code", {class: "url"}, String(socketAddress(this.path))), element("span", {class: "state-cell grow", role: "status"}, this.status.node)),
            element("div", {class: "request"},
                element("label", {for: id, label: this.keyed ? "console.request_none" : "console.request"}),
                this.input,
                element("div", {class: "actions"},
                    button("send", ICONS.send, () => this.send(), {class: "button first"}),
                    button("close", ICONS.close, () => this.end()),
                    this.pauseButton,
                    button("clear", ICONS.bin, () => this.clear()),
                    element("span", {class: "grow copy-as soft", label: "console.copy"}),
                    ["python", "javascript", "curl"].map((name) => button(name, ICONS.copy, () => this.copy(name))))),
            element("p", {class: "note", role: "status"}, this.told.node),
            element("div", {class: "frames-head"}, element("h2", {label: "console.frames"}), element("span", {class: "soft"}, this.counted.node)),
            element("div", {class: "frames", role: "log", "aria-live": "off", tabindex: 0, "data-hint": "console.frames"}, this.lines.map(({line}) => line)));
        this.statusBox = this.element.querySelector(".state-cell");
        label(this.element);
    }

    show() {
        draw(this.draw);
    }

    /** Send the request; open the socket first if there is none. */
    send() {
        const request = this.input.value.trim();
        if (request) {
            try {
                JSON.parse(request);
            } catch (wrong) {
                // It is sent all the same: to see what the gateway answers is what a console is for.
                this.told.show(text("console.no_json", {reason: wrong.message}));
            }
        } else this.told.show("");
        if (this.socket?.readyState === WebSocket.OPEN) {
            if (request) this.socket.send(request);
            return;
        }
        this.open(request);
    }

    open(request) {
        const {protocols, first} = shown();
        this.turn("connecting", "");
        const socket = new WebSocket(socketAddress(this.path), protocols);
        this.socket = socket;
        socket.addEventListener("open", () => {
            this.turn("open", "");
            if (first) socket.send(JSON.stringify(first));
            if (request) socket.send(request);
        });
        socket.addEventListener("message", (event) => this.take(event.data));
        socket.addEventListener("close", (event) => {
            if (socket === this.socket) this.turn("ended", `${event.code} ${event.reason}`.trim());
        });
    }

    end() {
        this.socket?.close(1000);
    }

    turn(state, reason) {
        this.state = state;
        this.reason = reason;
        draw(this.draw);
    }

    take(frame) {
        this.frames += 1;
        this.size += frame.length;
        if (!this.paused) {
            this.kept.push({at: Date.now(), frame});
            if (this.kept.length > 2 * LINES) this.kept.splice(0, this.kept.length - LINES);
        }
        draw(this.draw);
    }

    pause() {
        this.paused = !this.paused;
        mark(this.pauseButton, "aria-pressed", String(this.paused));
        this.pauseButton.replaceChildren(icon(this.paused ? ICONS.play : ICONS.pause, 14), element("span", {label: this.paused ? "console.go_on" : "console.pause"}));
        label(this.pauseButton);
        if (!this.paused) for (const {line} of this.lines) line.open = false;
        draw(this.draw);
    }

    clear() {
        this.kept = [];
        this.frames = this.size = 0;
        draw(this.draw);
    }

    async copy(name) {
        const request = this.input.value.trim();
        try {
            const sample = samples[name]({path: this.path, request, keyed: this.keyed});
            await navigator.clipboard.writeText(sample);
            this.told.show(text("console.copied", {name: text(`console.${name}`)}));
        } catch (failed) {
            this.told.show(text("console.not_copied", {reason: failed.message}));
        }
    }

    draw() {
        if (!this.element.isConnected) return;
        this.status.show(text(`console.${this.state}`, {reason: reasonOf(this.reason)}));
        mark(this.statusBox, "data-mark", {open: "ok", connecting: "warn", ended: this.reason.startsWith("1000") ? "note" : "bad"}[this.state] ?? "none");
        this.counted.show(text("console.counted", {frames: whole(this.frames), size: bytes(this.size)}));
        if (this.paused) return;
        const newest = this.kept.length - 1;
        this.lines.forEach(({texts, line}, at) => {
            const each = this.kept[newest - at];
            line.hidden = !each;
            line.frame = each?.frame;
            texts[0].show(each ? clock(each.at, true) : "");
            texts[1].show(each ? bytes(each.frame.length) : "");
            texts[2].show(each ? each.frame.slice(0, LINE) : "");
        });
    }
}
