// Reads a stream with fetch and the npm package eventsource-parser: one line of JSON for each
// event. A stream that ends is opened again after its last `retry`, with the last event id.
import { createRequire } from "node:module";

const require = createRequire(process.env.READERS + "/");
const { createParser } = require("eventsource-parser");
let [lastId, retryMs] = [undefined, 1000];
for (;;) {
  try {
    const headers = lastId ? { "Last-Event-ID": lastId } : {};
    const answer = await fetch(process.argv[2], { headers });
    const parser = createParser({
      onEvent: ({ event, id, data }) => {
        lastId = id ?? lastId;
        console.log(JSON.stringify({ event, data: JSON.parse(data) }));
      },
      onRetry: (ms) => {
        retryMs = ms;
      },
    });
    const decoder = new TextDecoder();
    for await (const chunk of answer.body) {
      parser.feed(decoder.decode(chunk, { stream: true }));
    }
  } catch (error) {
    console.error(String(error));
  }
  await new Promise((resolve) => setTimeout(resolve, retryMs));
}
