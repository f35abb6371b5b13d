// The API key. It is kept in the memory of this page alone: not in the browser's store, not in a URL.

let key = "";
const listeners = [];
// What may stand in Sec-WebSocket-Protocol, in which a browser shows a key (RFC 9110, 5.6.2).
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

export function hasKey() {
    return key !== "";
}

/** Use a key from now on, or none. */
export function useKey(given) {
    key = given.trim();
    for (const listener of listeners) listener();
}

/** Call `listener` after the key has changed. */
export function onKey(listener) {
    listeners.push(listener);
}

/** Return the headers that show `given`: a header holds bytes, so a key is sent as those of its UTF-8. */
export function headers(given = key) {
    return given ? {Authorization: "Bearer " + String.fromCharCode(...new TextEncoder().encode(given))} : {};
}

/** Return the subprotocols of a handshake that show the key, and the first frame that shows one they cannot hold. */
export function shown() {
    if (!key) return {protocols: [], first: null};
    return TOKEN.test(key) ? {protocols: ["key." + key], first: null} : {protocols: [], first: {action: "auth", id: "key", key}};
}
