// A request of a console as a program: Python, JavaScript, curl. A key is never in it, only where it is read from.

import {address, socketAddress} from "./gateway.js";

// The stream of events over plain HTTP that has the data of a WebSocket (docs/http.md, "Events").
const STREAMS = {"ws/realtime": "sse/realtime", "ws/whole_quote": "sse/whole_quote", "ws/l2_thousand": "sse/l2_thousand", "ws/formula": "sse/formula"};
const KEY = "QMT_BRIDGE_API_KEY";

const quoted = (text) => (/['\\]/.test(text) ? JSON.stringify(text) : `'${text}'`);
const inShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function python({path, request, keyed}) {
    const lines = ["import asyncio", "import json"];
    if (keyed) lines.push("import os");
    lines.push("", "from websockets.asyncio.client import connect", "", "", "async def main():");
    const url = `"${socketAddress(path)}"`;
    if (keyed) lines.push(`    headers = {"X-API-Key": os.environ["${KEY}"]}`, `    async with connect(${url}, additional_headers=headers) as socket:`);
    else lines.push(`    async with connect(${url}) as socket:`);
    if (request) lines.push(`        await socket.send(${quoted(request)})`);
    lines.push("        async for frame in socket:", "            print(json.loads(frame))", "", "", "asyncio.run(main())", "");
    return lines.join("\n");
}

export function javascript({path, request, keyed}) {
    const lines = [];
    if (keyed) lines.push(`// A browser cannot set headers on a WebSocket; the key is a subprotocol.`, `const key = prompt("API key");`);
    lines.push(`const socket = new WebSocket("${socketAddress(path)}"${keyed ? ", [`key.${key}`]" : ""});`);
    if (request) lines.push(`socket.onopen = () => socket.send(${quoted(request)});`);
    lines.push("socket.onmessage = (event) => console.log(JSON.parse(event.data));", "socket.onclose = (event) => console.log(event.code, event.reason);", "");
    return lines.join("\n");
}

export function curl(console) {
    const {path, request, keyed} = console;
    const header = keyed ? ` -H "X-API-Key: $${KEY}"` : "";
    const stream = STREAMS[path];
    if (stream && request) {
        const url = address(stream);
        for (const [name, value] of Object.entries(JSON.parse(request))) {
            if (name === "action" || name === "id") continue;
            const shown = Array.isArray(value) ? value.join(",") : typeof value === "object" ? JSON.stringify(value) : String(value);
            if (shown !== "" && shown !== "{}") url.searchParams.set(name, shown);
        }
        return `curl -N${header} ${inShell(String(url).replaceAll("%2C", ","))}\n`;
    }
    return request ? overTelnet(console) : handshake(console, header);
}

/** A handshake alone: the frames of the server are not masked, so their text is readable as it comes. */
function handshake({path}, header) {
    const fields = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="];
    return `curl -N --http1.1 --output -${header} \\\n${fields.map((field) => `    -H '${field}' \\\n`).join("")}    ${inShell(String(address(path)))}\n`;
}

/** A handshake and one frame, masked with zeros, which every version of curl can send as bytes. */
function overTelnet({path, request, keyed}) {
    const url = address(path);
    const size = new TextEncoder().encode(request).length;
    const octal = (byte) => "\\" + byte.toString(8).padStart(3, "0");
    const length = size < 126 ? octal(128 + size) : octal(254) + octal(size >> 8) + octal(size & 255);
    const key = keyed ? `X-API-Key: '"$${KEY}"'\\r\\n` : "";
    const head = `GET ${url.pathname} HTTP/1.1\\r\\nHost: ${url.host}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n${key}\\r\\n`;
    const frame = `\\201${length}\\000\\000\\000\\000`;
    const body = request.replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll("'", "\\047");
    const port = url.port || (url.protocol === "https:" ? 443 : 80);
    // curl waits for its input before it shows what came, so it is given an empty pong each second.
    return `{ printf '${head}'; sleep 1; printf '${frame}${body}'; while sleep 1; do printf '\\212\\200\\000\\000\\000\\000'; done; } | curl -sN telnet://${url.hostname}:${port}\n`;
}
