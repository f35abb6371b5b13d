// Ticks from the feeder's ZeroMQ socket in Node.js, without the gateway. What is missing is read from the store.
//
//   npm install zeromq
//   node node-zeromq.mjs [CODE ...]     ticks of these codes (600519.SH 000001.SZ)
//
// QMT_BRIDGE_MARKET is the feeder's address (tcp://127.0.0.1:5555), QMT_BRIDGE_STORE that of the store
// (tcp://127.0.0.1:5559). They need no key; between machines they have CURVE keys, see docs/wire.md.
// Tried with Node.js 20.20 and zeromq 6.8.
// Lines: `tick CODE EPOCH SEQ PRICE`, and `gap CODE REASON` where something is missing for good.

import { randomInt } from "node:crypto";
import { Dealer, Subscriber } from "zeromq";

const STAMP = 32; // bytes behind the topic: epoch, seq, and two times
const BEHIND_MS = 3000; // so long the store may be behind the feeder
const PAUSE_MS = 50;
// libzmq connects again by itself: the delay grows from the first of these to the second, with a random part.
const PATIENCE = { reconnectInterval: 500, reconnectMaxInterval: 30_000, tcpKeepalive: 1, tcpKeepaliveIdle: 10 };

const codes = process.argv.length > 2 ? process.argv.slice(2) : ["600519.SH", "000001.SZ"];
const topics = new Map(codes.map((code) => [`quote/${code}/tick/`, { code, epoch: 0, seq: 0 }]));

const news = new Subscriber({ ...PATIENCE, receiveHighWaterMark: 0 }); // no message is dropped
news.connect(process.env.QMT_BRIDGE_MARKET ?? "tcp://127.0.0.1:5555");
news.subscribe(...topics.keys());

let store = openStore();

function openStore() {
  const socket = new Dealer({ ...PATIENCE, receiveTimeout: BEHIND_MS, sendTimeout: BEHIND_MS, linger: 0 });
  socket.connect(process.env.QMT_BRIDGE_STORE ?? "tcp://127.0.0.1:5559");
  return socket;
}

// Returns one answer of the store behind the position; null if it is away.
async function ask(topic, { epoch, seq }) {
  const id = randomInt(2 ** 31);
  try {
    await store.send(JSON.stringify({ ask: "catch_up", id, topics: [topic], epoch, after: seq }));
    for (;;) {
      const answer = JSON.parse(String(await store.receive()));
      if (answer.id !== id) continue; // of a question that was given up
      if (answer.state === "refused") throw new Error(answer.error);
      return answer;
    }
  } catch (error) {
    if (error.code !== "EAGAIN") throw error;
    store.close();
    store = openStore(); // so that no old question is still waiting
    return null;
  }
}

function print(at, epoch, seq, body) {
  for (const record of body[at.code]) console.log(`tick ${at.code} ${epoch} ${seq} ${record.lastPrice}`);
  [at.epoch, at.seq] = [epoch, seq];
}

// Prints what is between the position and a live message, as far as the store has it.
async function fill(topic, at, epoch, seq) {
  let deadline = Date.now() + BEHIND_MS;
  while (Date.now() < deadline) {
    const answer = await ask(topic, at);
    for (const [storedEpoch, storedSeq, , , body] of answer?.frames ?? []) {
      for (const { after, before, reason } of answer.holes) {
        const isNext = before?.epoch === storedEpoch && before.seq === storedSeq;
        // The store may lack the first messages of a feeder, of which the live one is the first.
        const isLive = after?.epoch === epoch && after.seq === seq - 1;
        if (isNext && !isLive) console.log(`gap ${at.code} ${reason}`);
      }
      if (storedEpoch > epoch || (storedEpoch === epoch && storedSeq >= seq)) return;
      print(at, storedEpoch, storedSeq, body);
      deadline = Date.now() + BEHIND_MS;
    }
    if (epoch === at.epoch && seq === at.seq + 1) return;
    if (!answer?.more) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
  console.log(`gap ${at.code} store_behind`);
}

for await (const [head, body] of news) {
  const topic = head.subarray(0, -STAMP).toString();
  // Numbers, as JSON.parse makes them: an epoch is rounded to 256 ns, and the store compares it rounded.
  const epoch = Number(head.readBigUInt64BE(head.length - STAMP));
  const seq = Number(head.readBigUInt64BE(head.length - STAMP + 8));
  const at = topics.get(topic);
  if (!at || epoch < at.epoch || (epoch === at.epoch && seq <= at.seq)) continue; // was read from the store
  const follows = at.epoch === 0 || (epoch === at.epoch && seq === at.seq + 1);
  if (!follows) await fill(topic, at, epoch, seq);
  print(at, epoch, seq, JSON.parse(String(body)));
}
