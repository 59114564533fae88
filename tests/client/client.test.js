// The browser client against a fake EventSource and a fake fetch: `node --test tests/client/`.
"use strict";

const { test, mock } = require("node:test");
const assert = require("node:assert/strict");
require("../../src/web/client.js");

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

  // `lastEventId`: some browsers go on with a former stream's.
  hello(stream, watching, lastEventId = "") {
    this.readyState = 1;
    this.say("hello", { stream, watching }, lastEventId);
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
  for (const kind of [
    "open",
    "presence",
    "disconnect",
    "overloaded",
    "goodbye",
    "error",
    "close",
  ]) {
    greendot.on(kind, (value) =>
      seen.push(kind === "presence" ? `${value.user} ${value.status}` : kind),
    );
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

test("snapshot parts and events become states; within a stream the last word counts", () => {
  const { greendot, source, seen } = start({ watch: ["bob", "carol"] });
  source.hello("1.1.a", 2);
  source.say("snapshot", { presence: [record("bob", "offline", null)] }, "10");
  source.say("snapshot", { presence: [record("carol", "online", 5)] }, "10");
  source.say("presence", record("bob", "online", 20), "20");
  source.say("presence", record("bob", "online", 20), "20");
  source.say("presence", record("bob", "offline", 19), "21");
  source.say("presence", record("eve", "online", 22), "22");
  assert.deepEqual(seen, ["open", "bob offline", "carol online", "bob online", "bob offline"]);
  assert.equal(greendot.get("bob").since, 19);
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
  source.hello("1.1.a", 1);
  source.say("snapshot", { presence: [record("bob", "online", 20)] }, "20");
  source.fail(0);
  greendot.unwatch("bob");
  assert.equal(greendot.get("bob"), undefined);
  greendot.watch("bob");
  source.hello("2.2.b", 1, "20");
  await settle();
  assert.deepEqual(edits, []);
  assert.equal(greendot.get("bob").status, "online");
  greendot.unwatch("bob");
  await settle();
  greendot.watch("bob");
  assert.equal(greendot.get("bob"), undefined);
});

test("whoever was removed and is watched again during a disconnect is added", async () => {
  const { greendot, source, edits } = start({ watch: ["bob", "carol"] });
  source.hello("1.1.a", 2);
  source.say(
    "snapshot",
    { presence: [record("bob", "online", 20), record("carol", "online", 20)] },
    "20",
  );
  greendot.unwatch("bob");
  await settle();
  source.say("presence", record("carol", "offline", 30), "30");
  source.fail(0);
  greendot.watch("bob");
  edits.length = 0;
  // The first URL names bob, and its snapshot what changed since 30.
  source.hello("2.2.b", 2, "30");
  source.say("snapshot", { presence: [] }, "40");
  await settle();
  assert.deepEqual(edits, [{ stream: "2.2.b", add: ["bob"], remove: [] }]);
  source.say("presence", record("bob", "offline", 25), "50");
  assert.equal(greendot.get("bob").status, "offline");
});

test("a user removed and watched again before a resumed stream was told so is added", async () => {
  let answers;
  const { greendot, source, edits } = start({ watch: ["bob"] }, (count) =>
    count === 1 ? { ok: true, status: 200 } : new Promise((done) => (answers = done)),
  );
  source.hello("1.1.a", 1);
  source.say("snapshot", { presence: [record("bob", "online", 20)] }, "20");
  greendot.unwatch("bob");
  await settle();
  greendot.watch("carol");
  await settle();
  source.fail(0);
  // The edit that adds carol is still under way, so none removes bob yet.
  source.hello("2.2.b", 1, "20");
  greendot.watch("bob");
  answers({ ok: false, status: 404, json: async () => ({}) });
  await settle();
  assert.deepEqual(edits.at(-1), { stream: "2.2.b", add: ["carol", "bob"], remove: [] });
});

test("a source made anew does not resume for whoever was removed", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const { greendot, source, edits } = start({ watch: ["bob", "carol"] });
    source.hello("1.1.a", 2);
    source.say(
      "snapshot",
      { presence: [record("bob", "online", 20), record("carol", "online", 20)] },
      "20",
    );
    greendot.unwatch("bob");
    await settle();
    source.fail(2);
    greendot.watch("bob");
    mock.timers.tick(1300);
    assert.deepEqual(FakeSource.last.url.searchParams.getAll("watch"), ["carol"]);
    FakeSource.last.hello("2.2.b", 1);
    await settle();
    assert.deepEqual(edits.at(-1), { stream: "2.2.b", add: ["bob"], remove: [] });
  } finally {
    mock.timers.reset();
  }
});

test("an id takes back what the server has lost", () => {
  const { greendot, source, seen } = start({ watch: ["bob", "carol", "dave"] });
  source.hello("1.1.a", 3);
  source.say(
    "snapshot",
    { presence: ["bob", "carol", "dave"].map((user) => record(user, "online", 20)) },
    "20",
  );
  source.fail(0);
  seen.length = 0;
  source.hello("2.2.b", 3, "20");
  source.say(
    "snapshot",
    { presence: [record("bob", "offline", null), record("dave", "unknown", null)] },
    "20",
  );
  assert.deepEqual(seen, ["open"]);
  source.say("snapshot", { presence: [record("carol", "offline", 10)] }, "30");
  assert.deepEqual(seen, ["open", "bob offline", "carol offline"]);
  assert.equal(greendot.get("dave").status, "online");
  // From here on it is this stream's word.
  source.say("presence", record("bob", "online", 5), "31");
  assert.equal(greendot.get("bob").since, 5);
});

test("an id takes back nothing that is newer, and nothing that another stream said", () => {
  const { greendot, source, seen } = start({ watch: ["bob", "carol"] });
  source.hello("1.1.a", 2);
  source.say(
    "snapshot",
    { presence: [record("bob", "online", 50), record("carol", "online", 50)] },
    "50",
  );
  source.fail(0);
  source.hello("2.2.b", 2, "50");
  seen.length = 0;
  // A node that has heard less, or a clock that went back.
  source.say(
    "snapshot",
    { presence: [record("bob", "offline", 10), record("carol", "offline", 10)] },
    "49",
  );
  assert.deepEqual(seen, []);
  source.say("presence", record("carol", "offline", 60), "60");
  assert.deepEqual(seen, ["carol offline", "bob offline"]);
  source.say("presence", record("bob", "online", 70), "70");
  source.fail(0);
  source.hello("3.3.c", 2, "70");
  source.say("snapshot", { presence: [record("bob", "offline", 10)] }, "70");
  source.fail(0);
  source.hello("4.4.d", 2, "70");
  source.say("snapshot", { presence: [] }, "80");
  assert.equal(greendot.get("bob").status, "online");
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

test("an edit of uncertain outcome is made again as it was", async () => {
  for (const uncertain of [
    () => ({ ok: false, status: 503, json: async () => ({}) }),
    () => Promise.reject(new Error("cut")),
  ]) {
    mock.timers.enable({ apis: ["setTimeout"] });
    try {
      const { greendot, source, edits } = start({ watch: ["bob"] }, (count) =>
        count === 1 ? uncertain() : { ok: true, status: 200 },
      );
      source.hello("1.1.a", 1);
      greendot.unwatch("bob");
      greendot.watch("carol");
      greendot.watch("bob");
      greendot.unwatch("carol");
      await settle();
      assert.deepEqual(edits, [{ stream: "1.1.a", add: [], remove: ["bob"] }]);
      mock.timers.tick(1300);
      await settle();
      assert.deepEqual(edits.slice(1), [
        { stream: "1.1.a", add: [], remove: ["bob"] },
        { stream: "1.1.a", add: ["bob"], remove: [] },
      ]);
    } finally {
      mock.timers.reset();
    }
  }
});

test("what can not be a user's id is refused at once", () => {
  const good = ["x".repeat(128), "\u00e9".repeat(64), "\u{1F7E2}", "a/b%2F+ "];
  const { greendot, source } = start({ watch: good });
  assert.deepEqual(greendot.watching, good);
  const bad = [
    "",
    "x".repeat(129),
    "\u00e9".repeat(65),
    "a\u0000",
    "\u001f",
    "\u007f",
    "\u009f",
    "\ud800",
    "a\udc00b",
    7,
    null,
  ];
  for (const user of bad) {
    assert.throws(() => greendot.watch("dave", user), RangeError, JSON.stringify(user));
    assert.throws(() => start({ watch: [user] }), RangeError);
    if (user !== null) assert.throws(() => start({ user }), RangeError);
  }
  assert.throws(() => greendot.watch("a\u0007b"), {
    message:
      '"a\\u0007b" is no user: it holds a control character; ' +
      "a user is 1 to 128 bytes of UTF-8 without control characters",
  });
  assert.deepEqual(greendot.watching, good);
  assert.equal(FakeSource.last, source);
});

// A server that refuses what `fault` says; and what it watches after all edits.
async function against(fault, watch, more) {
  const watched = new Set();
  const edits = [];
  const fetch = async (_, { body }) => {
    const edit = JSON.parse(body);
    edits.push(edit);
    const after = new Set(watched);
    edit.remove.forEach((user) => after.delete(user));
    edit.add.forEach((user) => after.add(user));
    const status = fault(after, edit);
    if (status !== 200) return { ok: false, status, json: async () => ({ detail: "why" }) };
    watched.clear();
    after.forEach((user) => watched.add(user));
    return { ok: true, status };
  };
  const greendot = new Greendot("http://server", { watch, EventSource: FakeSource, fetch });
  FakeSource.last.url.searchParams.getAll("watch").forEach((user) => watched.add(user));
  const errors = [];
  greendot.on("error", (error) => errors.push(error));
  FakeSource.last.hello("1.1.a", watched.size);
  more(greendot);
  for (let turn = 0; turn < 200; turn++) await settle();
  return { greendot, watched, edits, errors };
}

test("a full stream: removals make room, and whoever finds none is given up", async () => {
  const some = (letter, count) => Array.from({ length: count }, (_, n) => `${letter}${n}`);
  const full = (after) => (after.size > 100 ? 413 : 200);
  const { greendot, watched, edits, errors } = await against(full, some("a", 90), (greendot) => {
    greendot.unwatch("a0", "a1");
    greendot.watch(...some("b", 40));
  });
  assert.deepEqual(edits[0], { add: [], remove: ["a0", "a1"] });
  assert.deepEqual([...watched], [...some("a", 90).slice(2), ...some("b", 12)]);
  assert.deepEqual(greendot.watching, [...watched]);
  assert.deepEqual(errors, [{ status: 413, detail: "why", users: some("b", 40).slice(12) }]);
  assert.ok(edits.length < 20, `${edits.length} edits`);
});

test("an edit that is refused with its removals is made without its additions first", async () => {
  const fault = (after, { add, remove }) => (add.length > 0 && remove.length > 0 ? 413 : 200);
  const { watched, edits, errors } = await against(fault, ["bob"], (greendot) => {
    greendot.watch("x");
    greendot.unwatch("bob");
    greendot.watch("carol");
  });
  const remove = { add: [], remove: ["bob"] };
  assert.deepEqual(edits, [
    { add: ["x"], remove: [] },
    { add: ["carol"], remove: ["bob"] },
    remove,
    { add: ["carol"], remove: [] },
  ]);
  assert.deepEqual([[...watched], errors], [["x", "carol"], []]);
});

test("whom the server takes for no user is given up alone", async () => {
  const users = Array.from({ length: 1000 }, (_, n) => `u${n}`);
  const fault = (_, { add }) => (add.includes("u7") || add.includes("u801") ? 400 : 200);
  const { greendot, watched, edits, errors } = await against(fault, [], (greendot) =>
    greendot.watch(...users),
  );
  assert.deepEqual(
    [...watched],
    users.filter((user) => user !== "u7" && user !== "u801"),
  );
  assert.deepEqual(greendot.watching, [...watched]);
  assert.deepEqual(
    errors,
    ["u7", "u801"].map((user) => ({ status: 400, detail: "why", users: [user] })),
  );
  assert.ok(edits.length < 80, `${edits.length} edits`);
});

test("after refused sources the URL gets shorter, and the rest is added by edits", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const watch = Array.from({ length: 300 }, (_, n) => `user-${n}`);
    const { edits } = start({ watch });
    const lengths = [];
    for (let refusals = 0; refusals < 40; refusals++) {
      lengths.push(FakeSource.last.url.searchParams.getAll("watch").length);
      FakeSource.last.fail(2);
      mock.timers.tick(40_000);
    }
    assert.deepEqual(lengths.slice(0, 4), [274, 140, 72, 36]);
    assert.equal(lengths.at(-1), 0);
    FakeSource.last.hello("1.1.a", 0);
    await settle();
    assert.deepEqual(edits, [{ stream: "1.1.a", add: watch, remove: [] }]);
  } finally {
    mock.timers.reset();
  }
});

test("a listener that throws is reported and stops nothing", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    const { greendot, source, edits, seen } = start({ watch: ["bob", "carol"] });
    for (const kind of ["open", "presence"]) {
      greendot.on(kind, () => {
        throw new Error(kind);
      });
    }
    greendot.watch("dave");
    source.hello("1.1.a", 2);
    source.say(
      "snapshot",
      { presence: [record("bob", "online", 5), record("carol", "online", 5)] },
      "10",
    );
    await settle();
    assert.deepEqual(reported, ["open", "presence", "presence"]);
    assert.deepEqual(seen, ["open", "bob online", "carol online"]);
    assert.deepEqual(edits, [{ stream: "1.1.a", add: ["dave"], remove: [] }]);
  } finally {
    delete globalThis.reportError;
  }
});

test("an edit of a stream that has ended is silent", async () => {
  const { greendot, source, seen } = start({}, () => ({
    ok: false,
    status: 404,
    json: async () => ({}),
  }));
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
