// node's `ws` as everybody uses it: lines "code TAB json" come in by TCP, each goes to whoever asked for its code.
// Run with NODE_PATH at the folder that holds ws: node ws_server.js PORT FEED_PORT
const net = require("net");
const readline = require("readline");
const { WebSocketServer } = require("ws");

const subscribers = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });

server.on("connection", (socket) => {
  const mine = [];
  socket.on("message", (message) => {
    for (const code of JSON.parse(message).stocks) {
      if (!subscribers.has(code)) subscribers.set(code, new Set());
      subscribers.get(code).add(socket);
      mine.push(code);
    }
  });
  socket.on("close", () => mine.forEach((code) => subscribers.get(code).delete(socket)));
});

net
  .createServer((feed) => {
    readline.createInterface({ input: feed }).on("line", (line) => {
      const tab = line.indexOf("\t");
      const body = line.slice(tab + 1);
      for (const socket of subscribers.get(line.slice(0, tab)) ?? []) socket.send(body);
    });
  })
  .listen(Number(process.argv[3]), "127.0.0.1");
