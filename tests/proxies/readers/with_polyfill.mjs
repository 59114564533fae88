// Reads a stream with the npm package event-source-polyfill: one line of JSON for each event. It
// comes back by itself, with `lastEventId=` in the query. It is made for browsers: fetch is node's.
import { createRequire } from "node:module";

const require = createRequire(process.env.READERS + "/");
globalThis.window = globalThis;
globalThis.document = { readyState: "complete" };
const { EventSourcePolyfill } = require("event-source-polyfill");
const source = new EventSourcePolyfill(process.argv[2], {
  Transport: undefined,
  heartbeatTimeout: 600_000,
});
for (const event of ["hello", "snapshot", "presence", "goodbye", "overloaded", "ping"]) {
  source.addEventListener(event, ({ data }) => {
    console.log(JSON.stringify({ event, data: JSON.parse(data) }));
  });
}
