// The browser client against a fake EventSource and a fake fetch: `node --test tests/client/`.
"use strict";

const { test, mock } = require("node:test");
const assert = require("node:assert/strict");
require("../../src/admin/client.js");

class FakeSource {
  static all = [];
  static get last() {
    return FakeSource.all.at(-1);
  }

  constructor(url) {
    this.url = new URL(url);
    this.readyState = 0;
    this.listeners = {};
    FakeSource.all.push(this);
  }

  addEventListener(kind, listener) {
    (this.listeners[kind] ??= []).push(listener);
  }

  close() {
    this.readyState = 2;
  }

  say(kind, data, lastEventId = "") {
    const event = { data: data === undefined ? undefined : JSON.stringify(data), lastEventId };
    for (const listener of this.listeners[kind] ?? []) listener(event);
  }

  hello(stream, watching) {
    this.readyState = 1;
    this.say("hello", { stream, watching });
  }

  fail(readyState) {
    this.readyState = readyState;
    this.say("error");
  }
}

function start(options = {}, answer = () => ({ ok: true, status: 200 })) {
  const edits = [];
  const fetch = async (url, { body }) => {
    edits.push({ stream: url.split("/").at(-2), ...JSON.parse(body) });
    return answer(edits.length);
  };
  const greendot = new Greendot("http://server/", { ...options, EventSource: FakeSource, fetch });
  const seen = [];
  for (const kind of ["open", "presence", "disconnect", "overloaded", "goodbye", "error", "close"]) {
    greendot.on(kind, (value) => seen.push(kind === "presence" ? `${value.user} ${value.status}` : kind));
  }
  return { greendot, edits, seen, source: FakeSource.last };
}

const settle = () => new Promise((done) => setImmediate(done));
const record = (user, status, since) => ({ user, status, since, last_active: since });

test("the URL names user and watches", () => {
  const { source } = start({ user: "al ice", watch: ["bob", "a&b"] });
  assert.equal(source.url.pathname, "/v1/stream");
  assert.equal(source.url.searchParams.get("user"), "al ice");
  assert.deepEqual(source.url.searchParams.getAll("watch"), ["bob", "a&b"]);
});

test("snapshot parts and events become states; older ones are dropped", () => {
  const { greendot, source, seen } = start({ watch: ["bob", "carol"] });
  source.hello("1.1.a", 2);
  source.say("snapshot", { presence: [record("bob", "offline", null)] }, "10");
  source.say("snapshot", { presence: [record("carol", "online", 5)] }, "10");
  source.say("presence", record("bob", "online", 20), "20");
  source.say("presence", record("bob", "online", 20), "20");
  source.say("presence", record("bob", "offline", 19), "21");
  source.say("presence", record("eve", "online", 22), "22");
  assert.deepEqual(seen, ["open", "bob offline", "carol online", "bob online"]);
  assert.equal(greendot.get("bob").since, 20);
  assert.equal(greendot.get("eve"), undefined);
});

test("edits wait for hello and go one after the other", async () => {
  const { greendot, source, edits } = start({ watch: ["bob"] });
  greendot.watch("carol");
  await settle();
  assert.deepEqual(edits, []);
  source.hello("1.1.a", 1);
  greendot.unwatch("bob");
  greendot.watch("dave");
  await settle();
  assert.deepEqual(edits, [
    { stream: "1.1.a", add: ["carol"], remove: [] },
    { stream: "1.1.a", add: ["dave"], remove: ["bob"] },
  ]);
  assert.deepEqual(greendot.watching, ["carol", "dave"]);
});

test("after a reconnect the edits are made again", async () => {
  const { greendot, source, edits } = start({ watch: ["bob"] });
  source.hello("1.1.a", 1);
  greendot.watch("carol");
  greendot.unwatch("bob");
  await settle();
  edits.length = 0;
  // The browser reconnects by itself with the first URL.
  source.fail(0);
  source.hello("2.7.b", 1);
  await settle();
  assert.deepEqual(edits, [{ stream: "2.7.b", add: ["carol"], remove: ["bob"] }]);
});

test("a list that no URL holds follows as edits", async () => {
  const watch = Array.from({ length: 3000 }, (_, n) => `user-${n}`);
  const { source, edits } = start({ watch });
  assert.ok(source.url.search.length <= 4001);
  const inUrl = source.url.searchParams.getAll("watch");
  source.hello("1.1.a", inUrl.length);
  await settle();
  assert.ok(edits.every((edit) => edit.add.length <= 1000 && edit.remove.length === 0));
  assert.deepEqual([...inUrl, ...edits.flatMap((edit) => edit.add)], watch);
});

test("a source that gave up is replaced, later and later, with the last id", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const { source, seen } = start({ watch: ["bob"] });
    source.hello("1.1.a", 1);
    source.say("presence", record("bob", "online", 20), "20");
    const before = FakeSource.all.length;
    source.fail(2);
    mock.timers.tick(700);
    assert.equal(FakeSource.all.length, before);
    mock.timers.tick(600);
    assert.equal(FakeSource.all.length, before + 1);
    assert.equal(FakeSource.last.url.searchParams.get("last_event_id"), "20");
    FakeSource.last.fail(2);
    mock.timers.tick(1400);
    assert.equal(FakeSource.all.length, before + 1);
    mock.timers.tick(1200);
    assert.equal(FakeSource.all.length, before + 2);
    // What the first source still says is nobody's.
    source.say("presence", record("bob", "offline", 30), "30");
    assert.deepEqual(seen, ["open", "bob online", "disconnect", "disconnect"]);
  } finally {
    mock.timers.reset();
  }
});

test("who resumes puts only known users into the URL; the others are added", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const { greendot, source, edits } = start({ watch: ["bob"] });
    source.hello("1.1.a", 1);
    source.say("snapshot", { presence: [record("bob", "online", 20)] }, "20");
    source.fail(2);
    greendot.watch("carol");
    mock.timers.tick(1300);
    assert.deepEqual(FakeSource.last.url.searchParams.getAll("watch"), ["bob"]);
    FakeSource.last.hello("2.2.b", 1);
    await settle();
    assert.deepEqual(edits, [{ stream: "2.2.b", add: ["carol"], remove: [] }]);
  } finally {
    mock.timers.reset();
  }
});

test("an id says nothing of users who were added since", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const { greendot, source, edits } = start({ watch: ["bob"] });
    source.hello("1.1.a", 1);
    source.say("snapshot", { presence: [record("bob", "online", 20)] }, "20");
    greendot.watch("carol");
    await settle();
    // Her node was behind: no id of its own.
    source.say("presence", record("carol", "online", 10), "20");
    source.fail(2);
    mock.timers.tick(1300);
    assert.deepEqual(FakeSource.last.url.searchParams.getAll("watch"), ["bob"]);
    assert.equal(FakeSource.last.url.searchParams.get("last_event_id"), "20");
    FakeSource.last.hello("2.2.b", 1);
    await settle();
    assert.deepEqual(edits.at(-1), { stream: "2.2.b", add: ["carol"], remove: [] });
  } finally {
    mock.timers.reset();
  }
});

test("whoever is watched again at once is still known", async () => {
  const { greendot, source, edits } = start({ watch: ["bob"] });
  source.say("snapshot", { presence: [record("bob", "online", 20)] }, "20");
  greendot.unwatch("bob");
  assert.equal(greendot.get("bob"), undefined);
  greendot.watch("bob");
  source.hello("1.1.a", 1);
  await settle();
  assert.deepEqual(edits, []);
  assert.equal(greendot.get("bob").status, "online");
  greendot.unwatch("bob");
  await settle();
  greendot.watch("bob");
  assert.equal(greendot.get("bob"), undefined);
});

test("overloaded and goodbye are told; the browser comes back by itself", () => {
  const { source, seen } = start({ watch: ["bob"] });
  const before = FakeSource.all.length;
  source.say("overloaded", { reason: "conns-max" });
  source.fail(0);
  source.hello("1.1.a", 1);
  source.say("goodbye", { reason: "draining" });
  source.fail(0);
  assert.deepEqual(seen, ["overloaded", "disconnect", "open", "goodbye", "disconnect"]);
  assert.equal(FakeSource.all.length, before);
});

test("a refused edit is told and not repeated; an overloaded server's is", async () => {
  const refusal = (status) => ({ ok: false, status, json: async () => ({ detail: "why" }) });
  const refused = start({}, () => refusal(413));
  refused.source.hello("1.1.a", 0);
  refused.greendot.watch("bob");
  await settle();
  assert.equal(refused.edits.length, 1);
  assert.deepEqual(refused.seen, ["open", "error"]);

  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const busy = start({}, (count) => (count === 1 ? refusal(503) : { ok: true, status: 200 }));
    busy.source.hello("1.1.a", 0);
    busy.greendot.watch("bob");
    await settle();
    assert.equal(busy.edits.length, 1);
    mock.timers.tick(1300);
    await settle();
    assert.deepEqual(busy.edits[1], { stream: "1.1.a", add: ["bob"], remove: [] });
  } finally {
    mock.timers.reset();
  }
});

test("an edit of a stream that has ended is silent", async () => {
  const { greendot, source, seen } = start({}, () => ({ ok: false, status: 404, json: async () => ({}) }));
  source.hello("1.1.a", 0);
  greendot.watch("bob");
  await settle();
  assert.deepEqual(seen, ["open"]);
});

test("close is the end", async () => {
  const { greendot, source, seen, edits } = start({ watch: ["bob"] });
  source.hello("1.1.a", 1);
  greendot.close();
  greendot.close();
  greendot.watch("carol");
  source.say("presence", record("bob", "online", 1), "1");
  await settle();
  assert.equal(source.readyState, 2);
  assert.deepEqual(seen, ["open", "close"]);
  assert.deepEqual(edits, []);
});

test("unknown event kinds are refused", () => {
  const { greendot } = start();
  assert.throws(() => greendot.on("presense", () => {}), RangeError);
});
