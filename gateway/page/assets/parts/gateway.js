// The gateway of this page: its addresses, also below a path of a proxy, and its answers to plain HTTP.

import {headers} from "./key.js";

/** Return the URL of a path of the gateway. */
export function address(path) {
    return new URL(path.replace(/^\//, ""), document.baseURI);
}

/** Return the URL of a WebSocket of the gateway. */
export function socketAddress(path) {
    const url = address(path);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return url;
}

/** An answer that is no success: `status` 0 is a gateway that does not answer. */
export class Unserved extends Error {
    constructor(status, told) {
        super(told);
        this.status = status;
    }
}

/** Ask the gateway; return the status and the JSON or text of its answer. `key` is shown in the place of the page's. */
export async function ask(path, {method = "GET", key} = {}) {
    let response;
    try {
        response = await fetch(address(path), {method, headers: headers(key), cache: "no-store", signal: AbortSignal.timeout(8000)});
    } catch {
        throw new Unserved(0, "away");
    }
    const body = await response.text();
    const json = (response.headers.get("content-type") ?? "").includes("json");
    let read = body;
    try {
        if (json && body) read = JSON.parse(body);
    } catch {
        throw new Unserved(response.status, "the answer is not JSON");
    }
    return {status: response.status, body: read};
}

/** Return the JSON of a successful answer; raise `Unserved` otherwise. */
export async function read(path, options) {
    const {status, body} = await ask(path, options);
    if (status >= 200 && status < 300) return body;
    throw new Unserved(status, typeof body === "string" ? body.trim() : body.error ?? String(status));
}
