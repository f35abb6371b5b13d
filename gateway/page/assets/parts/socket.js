// A WebSocket of the gateway that stays open: it connects again after a loss, but not after a refusal.

import {onKey, shown} from "./key.js";
import {socketAddress} from "./gateway.js";

// Closes after which the same request would be refused again (docs/websocket.md, "Close codes").
const FINAL = new Set([1000, 1003, 1007, 1008, 1009]);
const FIRST_DELAY = 400;
const LONGEST_DELAY = 8000;
// The gateway sends a heartbeat after 15 s without another frame; what is silent for longer hangs, or the way to it does.
const SILENT = 40_000;
const sockets = new Set();

export class Socket {
    /**
     * Name the socket at `path`. `heard` has what is called: `open()` after each welcome, `frame(frame)` for each
     * frame, `state(state, reason)` for each change: connecting, open, waiting, refused, closed.
     */
    constructor(path, heard) {
        this.path = path;
        this.heard = heard;
        this.state = "closed";
        this.reason = "";
        this.losses = 0;
        this.opened = 0;
        sockets.add(this);
    }

    open() {
        clearTimeout(this.timer);
        this.drop();
        this.enter("connecting", "");
        this.heardAt = performance.now();
        const {protocols, first} = shown();
        const socket = new WebSocket(socketAddress(this.path), ["qmt.v1.json", ...protocols]);
        this.socket = socket;
        if (first) socket.addEventListener("open", () => socket.send(JSON.stringify(first)));
        socket.addEventListener("message", (event) => this.take(socket, event.data));
        socket.addEventListener("close", (event) => this.lose(socket, event));
    }

    /** Close for good, until it is opened again. */
    close() {
        clearTimeout(this.timer);
        this.drop();
        this.enter("closed", "");
    }

    /** Connect again if it is in use; with a new key, or because a person asks. */
    renew() {
        if (this.state !== "closed") this.open();
    }

    /** Send a request; return false if there is no connection, whose `open` will tell what is wanted. */
    send(request) {
        if (this.state !== "open") return false;
        this.socket.send(JSON.stringify(request));
        return true;
    }

    take(socket, data) {
        if (socket !== this.socket) return;
        this.heardAt = performance.now();
        const frame = JSON.parse(data);
        if (frame.type === "welcome") {
            this.losses = 0;
            this.opened += 1;
            this.enter("open", "");
            this.heard.frame?.(frame);
            this.heard.open?.(frame);
        } else {
            this.heard.frame?.(frame);
        }
    }

    lose(socket, event) {
        if (socket !== this.socket) return;
        this.drop();
        const reason = event.reason || String(event.code);
        if (FINAL.has(event.code)) {
            this.enter("refused", reason);
            return;
        }
        this.enter("waiting", reason);
        const longest = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.losses);
        this.losses += 1;
        this.timer = setTimeout(() => this.open(), longest * (0.5 + Math.random() / 2));
    }

    /** Take a connection on which nothing comes any more for a lost one. */
    watch() {
        if (this.socket && performance.now() - this.heardAt > SILENT) this.lose(this.socket, {code: 1006, reason: "silent"});
    }

    drop() {
        const socket = this.socket;
        this.socket = null;
        // A browser logs a warning for a socket that is closed before it is open.
        if (socket?.readyState === WebSocket.CONNECTING) socket.addEventListener("open", () => socket.close());
        else socket?.close();
    }

    enter(state, reason) {
        if (state === this.state && reason === this.reason) return;
        this.state = state;
        this.reason = reason;
        this.heard.state?.(state, reason);
    }
}

onKey(() => {
    for (const socket of sockets) socket.renew();
});
setInterval(() => {
    for (const socket of sockets) socket.watch();
}, SILENT / 8);
// A machine that was asleep, or a network that is back, does not wait for the rest of a delay.
addEventListener("online", () => {
    for (const socket of sockets) if (socket.state === "waiting") socket.open();
});
