// The client's own EventSource against a server of Node's: `node --test tests/client/`.

import { test } from "node:test";
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { once } from "node:events";
import { EventSource } from "../../src/web/client/event-source.js";

const TYPE = { "Content-Type": "text/event-stream; charset=utf-8" };

// A server that answers the nth request by `answers[n]`; and what it was asked.
async function serve(...answers) {
  const asked = [];
  const server = createServer((request, answer) => {
    asked.push(request.headers["last-event-id"] ?? "-");
    answers[Math.min(asked.length, answers.length) - 1](answer);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `http://127.0.0.1:${server.address().port}/`, asked, close };
}

// What a source tells, until `count` events have come.
function told(source, count, kinds) {
  const events = [];
  return new Promise((done) => {
    for (const kind of kinds)
      source.addEventListener(kind, ({ data, lastEventId }) => {
        events.push([kind, data, lastEventId, source.readyState]);
        if (events.length === count) done(events);
      });
  });
}

test("events as the standard has them, however they are cut", async () => {
  const stream =
    "\ufeff: a comment\nevent: hello\nretry: 20\ndata: {}\n\n" +
    "id: 7\r\ndata:one\r\ndata:  two\r\n\r\nid: 8\ndata\n\nevent: lost\nid: 9\n\n" +
    "nonsense: 1\rdata: \u{1F7E2}\r\rdata: cut off";
  const bytes = Buffer.from(stream);
  for (const size of [1, 2, 3, 5, bytes.length]) {
    const server = await serve(async (answer) => {
      answer.writeHead(200, TYPE);
      for (let at = 0; at < bytes.length; at += size) {
        answer.write(bytes.subarray(at, at + size));
        if (size < 3) await new Promise((done) => setImmediate(done));
      }
      answer.end();
    });
    const source = new EventSource(server.url);
    const events = await told(source, 6, ["open", "hello", "message", "lost", "error"]);
    assert.deepEqual(events, [
      ["open", undefined, undefined, 1],
      ["hello", "{}", "", 1],
      ["message", "one\n two", "7", 1],
      ["message", "", "8", 1],
      ["message", "\u{1F7E2}", "9", 1],
      ["error", undefined, undefined, 0],
    ]);
    source.close();
    server.close();
  }
});

test("it comes back with the last id after the time that it was told", async () => {
  const server = await serve(
    (answer) => answer.writeHead(200, TYPE).end("retry: 1\nid: 5\ndata: a\n\n"),
    (answer) => answer.writeHead(200, TYPE).end("data: b\n\n"),
    (answer) => answer.writeHead(204).end(),
  );
  const source = new EventSource(server.url);
  const events = await told(source, 5, ["message", "error"]);
  assert.deepEqual(
    events.map(([kind, data, id, state]) => [kind, data ?? id, state]),
    [
      ["message", "a", 1],
      ["error", undefined, 0],
      ["message", "b", 1],
      ["error", undefined, 0],
      ["error", undefined, 2],
    ],
  );
  assert.deepEqual(server.asked, ["-", "5", "5"]);
  server.close();
});

test("an answer that is no stream closes it", async () => {
  for (const [status, type] of [
    [401, "application/problem+json"],
    [200, "text/html"],
  ]) {
    const server = await serve((answer) =>
      answer.writeHead(status, { "Content-Type": type }).end(),
    );
    const source = new EventSource(server.url);
    const [[kind, , , state]] = await told(source, 1, ["error"]);
    assert.deepEqual([kind, state], ["error", 2]);
    server.close();
  }
});

test("one that is closed tells nothing more", async () => {
  const server = await serve((answer) => answer.writeHead(200, TYPE).write("data: a\n\n"));
  const source = new EventSource(server.url);
  await told(source, 1, ["message"]);
  const more = [];
  source.addEventListener("error", () => more.push("error"));
  source.close();
  await new Promise((done) => setTimeout(done, 50));
  assert.deepEqual([more, source.readyState], [[], 2]);
  server.close();
});
