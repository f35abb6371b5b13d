// Ticks, or trade events, from the gateway in Node.js. Reconnects, and goes on where it was.
//
//   npm install ws
//   node node.mjs [CODE ...]      ticks of these codes (600519.SH 000001.SZ)
//   node node.mjs trade [FILE]    every trade event once; FILE (position.txt) keeps the position
//
// QMT_BRIDGE_URL is the gateway (ws://127.0.0.1:8000), QMT_BRIDGE_API_KEY the key. Tried with Node.js 20.20 and ws 8.23.
// Lines: `tick CODE EPOCH SEQ PRICE`, `trade SEQ TYPE`, and `gap ...` where something is missing for good.

import { readFileSync, renameSync, writeFileSync } from "node:fs";
import WebSocket from "ws";

const BASE = process.env.QMT_BRIDGE_URL ?? "ws://127.0.0.1:8000";
const KEY = process.env.QMT_BRIDGE_API_KEY;
const SILENCE_MS = 40_000; // the gateway sends a heartbeat after 15 s
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
const FINAL_CLOSES = new Set([1003, 1007, 1008, 1009]); // the same request would be refused again

class Ticks {
  #positions = {}; // by code: behind which frame to go on

  constructor(codes) {
    this.codes = codes;
  }

  path() {
    return "/ws/realtime?ctl=1";
  }

  request() {
    // A code without a position begins with its last value.
    const request = { action: "subscribe", id: 1, stocks: this.codes, seq: true, complete: true };
    return Object.keys(this.#positions).length ? { ...request, start: this.#positions } : request;
  }

  take(frame) {
    if (frame.type === "gap") console.log(`gap ${frame.code} ${frame.reason}`);
    // What is missing right behind a position is in the ack.
    for (const [code, { complete, reason }] of Object.entries((frame.type === "subscribed" && frame.start) || {})) {
      if (!complete) console.log(`gap ${code} ${reason}`);
    }
    if (frame.type !== "data") return;
    // JavaScript rounds the epoch to 256 ns, and the gateway compares it rounded.
    const { epoch, seq, market } = frame;
    for (const [code, records] of Object.entries(frame.data)) {
      const last = this.#positions[code];
      if (last?.epoch === epoch && seq <= last.seq) continue; // a last value that was here before
      for (const record of records) console.log(`tick ${code} ${epoch} ${seq} ${record.lastPrice}`);
      this.#positions[code] = market ? { epoch, seq, market } : { epoch, seq };
    }
  }
}

class Trades {
  constructor(file) {
    this.file = file;
    [this.seq, this.epoch] = readPosition(file);
  }

  path() {
    return `/ws/trade?ctl=1&after=${this.seq}` + (this.epoch ? `&epoch=${this.epoch}` : "");
  }

  request() {
    return null;
  }

  take(frame) {
    if (frame.type === "subscribed") {
      if (frame.after !== this.seq) console.log(`gap trade ${this.seq} to ${frame.after}`);
      this.#keep(frame.after, frame.epoch);
    } else if (frame.seq && frame.data) {
      if (frame.seq <= this.seq) return;
      // Into a database write the event and its position in one transaction: then nothing is ever there twice.
      console.log(`trade ${frame.seq} ${frame.type}`);
      this.#keep(frame.seq, this.epoch);
    }
  }

  #keep(seq, epoch) {
    [this.seq, this.epoch] = [seq, epoch];
    writeFileSync(`${this.file}.new`, `${seq} ${epoch}\n`);
    renameSync(`${this.file}.new`, this.file);
  }
}

function readPosition(file) {
  try {
    return readFileSync(file, "utf8").trim().split(" ").map(Number);
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
    return [0, 0]; // from the first event of the journal on
  }
}

let attempt = 0;
let socket;
let timer;
let stopping = false;

function connect(stream) {
  const headers = KEY ? { Authorization: `Bearer ${KEY}` } : {};
  socket = new WebSocket(BASE + stream.path(), { headers, handshakeTimeout: 10_000 });
  const watch = () => {
    clearTimeout(timer);
    timer = setTimeout(() => socket.terminate(), SILENCE_MS);
  };
  socket.on("open", () => {
    const request = stream.request();
    if (request) socket.send(JSON.stringify(request));
    watch();
  });
  socket.on("message", (text) => {
    attempt = 0;
    watch();
    const frame = JSON.parse(text);
    const failed = frame.type === "error" || frame.rejected?.length;
    if (failed || ["feed", "skipped", "closing"].includes(frame.type)) console.error(String(text));
    stream.take(frame);
  });
  socket.on("error", (error) => console.error(error.message)); // "close" follows
  socket.on("close", (code, reason) => {
    clearTimeout(timer);
    if (stopping) return;
    if (FINAL_CLOSES.has(code)) {
      console.error(`closed with ${code}: ${reason}`);
      process.exitCode = 1;
      return;
    }
    const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt++);
    const delay = longest * (0.5 + Math.random() / 2);
    console.error(`lost (${code} ${reason}); again in ${Math.round(delay)} ms`);
    timer = setTimeout(connect, delay, stream);
  });
}

process.once("SIGINT", () => {
  stopping = true;
  clearTimeout(timer);
  socket.close(1000);
  setTimeout(() => socket.terminate(), 1000).unref(); // a gateway that does not answer the close
});

const [first, file] = process.argv.slice(2);
const codes = process.argv.slice(2);
connect(first === "trade" ? new Trades(file ?? "position.txt") : new Ticks(codes.length ? codes : ["600519.SH", "000001.SZ"]));
