// Reads a stream with the npm package eventsource: one line of JSON for each event. It comes back
// by itself.
import { createRequire } from "node:module";

const require = createRequire(process.env.READERS + "/");
const { EventSource } = require("eventsource");
const source = new EventSource(process.argv[2]);
for (const event of ["hello", "snapshot", "presence", "goodbye", "overloaded", "ping"]) {
  source.addEventListener(event, ({ data }) => {
    console.log(JSON.stringify({ event, data: JSON.parse(data) }));
  });
}
