// A plain consumer of the feeder, as docs/zeromq.md shows it: node consumer.js ADDRESS TOPIC
// Run with NODE_PATH at the folder that holds zeromq. Each line on stdin is answered with how many messages have been
// read, and the time in ns.
const zmq = require("zeromq");

let count = 0;

process.stdin.on("data", (lines) => {
  for (const byte of lines) if (byte === 10) process.stdout.write(`${count} ${process.hrtime.bigint()}\n`);
});

(async () => {
  const socket = new zmq.Subscriber();
  socket.connect(process.argv[2]);
  socket.subscribe(process.argv[3]);
  for await (const [head, body] of socket) {
    head.subarray(0, -32).toString();
    JSON.parse(body.toString());
    count += 1;
  }
})();
