// Pushes invented ticks of the codes that are wanted to a feeder with `--source push` (docs/push.md).
//
//   node pusher.mjs [NAME]
//
// Needs Node.js and no package. QMT_BRIDGE_PUSH is the address of the feeder on this machine (127.0.0.1:5560), and
// QMT_BRIDGE_PUSH_KEY its push_key. For real data replace what stands at the end: your feed calls `push`. Tried with
// Node.js 20.20.

import { connect as open } from "node:net";

const [HOST, PORT] = (process.env.QMT_BRIDGE_PUSH ?? "127.0.0.1:5560").split(/:(?=\d+$)/);
const HELLO = { type: "hello", protocol: 1, name: process.argv[2] ?? "example-node", kinds: ["quote"], simulated: true };
if (process.env.QMT_BRIDGE_PUSH_KEY) HELLO.key = process.env.QMT_BRIDGE_PUSH_KEY;
const SILENCE_MS = 20_000; // after which the feeder is given up: it sends a heartbeat every 5 s

if (!["127.0.0.1", "localhost", "::1"].includes(HOST)) {
  // It does not speak TLS, and all on the way could read the key.
  console.error("QMT_BRIDGE_PUSH: a feeder on another machine needs TLS (push.md): connect by a tunnel to this machine");
  process.exit(1);
}

const wanted = new Set(); // codes
const unsent = new Map(); // what the feeder has not taken yet: of a code the newest tick only
let socket;
let delay = 1;

// Sends the tick of a code, if it is wanted. It never waits: a newer tick replaces one that the feeder did not take.
function push(code, tick) {
  const topic = { kind: "quote", code, period: "tick" };
  if (wanted.has(code)) queue(code, { topic, time: Date.now(), data: tick });
}

function queue(key, message) {
  unsent.set(key, message);
  send();
}

function send() {
  for (const [key, message] of unsent) {
    if (socket.writableNeedDrain) return; // the feeder takes no more; "drain" follows
    unsent.delete(key);
    say(message);
  }
}

function say(message) {
  socket.write(`${JSON.stringify(message)}\n`);
}

function connect() {
  const began = Date.now();
  let again = true;
  let heartbeat;
  const obey = (line) => {
    const message = JSON.parse(line);
    const ticks = message.topic?.period === "tick";
    if (message.type === "welcome") {
      heartbeat = setInterval(say, (message.silence * 1000) / 3, { type: "heartbeat" });
    } else if (message.type === "subscribe" && ticks) {
      wanted.add(message.topic.code);
    } else if (message.type === "subscribe") {
      queue(line, { type: "refuse", topic: message.topic, code: "unsupported_period", error: "ticks only" });
    } else if (message.type === "unsubscribe" && ticks) {
      wanted.delete(message.topic.code);
    } else if (message.type === "refused" || message.type === "error") {
      console.error(line);
      again = message.code !== "replaced"; // another pusher has taken the name
    }
  };
  socket = open({ host: HOST, port: Number(PORT), noDelay: true }, () => say(HELLO));
  socket.setTimeout(SILENCE_MS, () => socket.destroy(new Error("no heartbeat of the feeder")));
  socket.setEncoding("utf8");
  let rest = "";
  socket.on("data", (chunk) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    try {
      lines.forEach(obey);
    } catch (error) {
      socket.destroy(error); // what listens there is no feeder
    }
  });
  socket.on("drain", send);
  socket.on("error", (error) => console.error(error.message)); // "close" follows
  socket.on("close", () => {
    clearInterval(heartbeat);
    wanted.clear();
    unsent.clear();
    if (!again) process.exit();
    if (Date.now() - began > 60_000) delay = 1;
    console.error(`no connection, again in ${delay} s`);
    setTimeout(connect, delay * 1000);
    delay = Math.min(30, 2 * delay);
  });
}

process.once("SIGINT", () => {
  socket.end('{"type": "bye"}\n', () => process.exit()); // it will not come back, so that its end is no fault
  setTimeout(process.exit, 1000, 0);
});
connect();

let [price, volume] = [10, 0];
setInterval(() => {
  for (const code of wanted) {
    price = Math.max(1, Math.round(100 * price + Math.floor(3 * Math.random()) - 1) / 100);
    push(code, { time: Date.now(), lastPrice: price, volume: ++volume });
  }
}, 500);
