// The client's stream against a fake EventSource and a fake fetch: `node --test tests/client/`.

import { mock, test } from "node:test";
import assert from "node:assert/strict";
import { Server } from "../../src/web/client/server.js";
import { Stream } from "../../src/web/client/stream.js";
import { FakeSource, record, settle } from "./fakes.mjs";

// A stream, and who listens to what it tells.
class Client extends Stream {
  stale = false;

  constructor(url, { token, fetch, ...options }) {
    const listeners = {};
    super(new Server({ url, token, fetch }), options, (kind, ...values) => {
      if (kind === "stale" || kind === "live") this.stale = kind === "stale";
      for (const listener of listeners[kind] ?? []) listener(...values);
    });
    this.on = (kind, listener) => (listeners[kind] ??= []).push(listener);
  }

  watch(...users) {
    super.watch(users);
  }

  unwatch(...users) {
    super.unwatch(users);
  }
}

function start(options = {}, answer = () => ({ ok: true, status: 200 })) {
  const edits = [];
  const fetch = async (url, { body }) => {
    edits.push({ stream: url.split("/").at(-2), ...JSON.parse(body) });
    return answer(edits.length);
  };
  const greendot = new Client("http://server/", { ...options, EventSource: FakeSource, fetch });
  const seen = [];
  for (const kind of ["open", "presence", "error", "left"]) {
    greendot.on(kind, (value) =>
      seen.push(kind === "presence" ? `${value.user} ${value.status}` : kind),
    );
  }
  return { greendot, edits, seen, source: FakeSource.last };
}

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
    assert.deepEqual(seen, ["open", "bob online"]);
  } finally {
    mock.timers.reset();
    mock.restoreAll();
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

test("a server at a limit is an error; the browser comes back by itself", () => {
  const { source, seen } = start({ watch: ["bob"] });
  const before = FakeSource.all.length;
  source.say("overloaded", { reason: "conns-max" });
  source.fail(0);
  source.hello("1.1.a", 1);
  source.say("goodbye", { reason: "draining" });
  source.fail(0);
  assert.deepEqual(seen, ["error", "open"]);
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
  const greendot = new Client("http://server", { watch, EventSource: FakeSource, fetch });
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
  greendot.close();
});

test("an edit that reaches another node than the stream is made again, later and later", () =>
  withClock(async (pass) => {
    const unknown = { ok: false, status: 404, json: async () => ({}) };
    const { greendot, edits, seen, source } = start({ watch: ["carol"] }, (count) =>
      count < 3 ? unknown : { ok: true, status: 200 },
    );
    source.hello("1.1.a", 1);
    greendot.watch("bob");
    await settle();
    for (const [count, ms] of [
      [1, 1000],
      [2, 2000],
    ]) {
      await pass(ms - 150);
      assert.equal(edits.length, count);
      await pass(200);
      assert.equal(edits.length, count + 1);
    }
    await pass(10_000);
    assert.deepEqual(edits, Array(3).fill({ stream: "1.1.a", add: ["bob"], remove: [] }));
    assert.equal(FakeSource.last, source);
    assert.deepEqual(seen, ["open"]);
  }));

test("close is the end", async () => {
  const { greendot, source, seen, edits } = start({ watch: ["bob"] });
  source.hello("1.1.a", 1);
  greendot.close();
  greendot.watch("carol");
  source.say("presence", record("bob", "online", 1), "1");
  await settle();
  assert.equal(source.readyState, 2);
  assert.deepEqual(seen, ["open"]);
  assert.deepEqual(edits, []);
});

// What is asked of the server, and the answers in its hands; what its hands forget never comes.
function stage(options = {}) {
  const asked = [];
  const fetch = (url, { method = "GET", body, signal }) =>
    new Promise((answer, fail) => {
      const call = { path: new URL(url).pathname, method, body, signal, answer, fail };
      asked.push(call);
    });
  const greendot = new Client("http://server", { ...options, EventSource: FakeSource, fetch });
  const seen = [];
  for (const kind of ["stale", "live", "error"]) greendot.on(kind, () => seen.push(kind));
  greendot.on("presence", (record) =>
    seen.push(`${record.user} ${record.status}${record.stale ? "?" : ""}`),
  );
  const beats = () => asked.filter(({ path }) => path.endsWith("/beat"));
  const probes = () => asked.filter(({ path }) => path === "/livez");
  return { greendot, asked, beats, probes, seen };
}

const good = { ok: true, status: 204, type: "basic" };
const HELLO = { keep_alive_ms: 1000, beat_interval_ms: 10000, vouch: "self" };

// A clock that stands still until it is told to go on, and waits that are as long as they are on
// average: a client waits between three and five quarters of that, so that not all come at once.
async function withClock(test) {
  mock.method(Math, "random", () => 0.5);
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1764009600000 });
  const pass = async (ms) => {
    for (const end = Date.now() + ms; Date.now() < end;) {
      mock.timers.tick(Math.min(50, end - Date.now()));
      await settle();
    }
  };
  try {
    await test(pass);
  } finally {
    mock.timers.reset();
  }
}

function begin(stream, data = {}) {
  const source = FakeSource.last;
  source.readyState = 1;
  source.say("hello", { stream, watching: 1, ...HELLO, ...data });
  return source;
}

test("who is online beats at each ping; a beat that hangs holds no later one up", () =>
  withClock(async (pass) => {
    const { beats, greendot } = stage({ user: "alice" });
    assert.equal(FakeSource.last.url.searchParams.get("vouch"), "self");
    const source = begin("1.1.a", { keep_alive_ms: 15000 });
    await pass(100);
    assert.equal(beats().length, 0);
    source.ping();
    assert.deepEqual([beats()[0].path, beats()[0].method], ["/v1/stream/1.1.a/beat", "POST"]);
    assert.equal(beats()[0].body, undefined);
    beats()[0].answer(good);
    await pass(9000);
    source.ping();
    await pass(4900);
    source.ping();
    assert.equal(beats().length, 3);
    assert.ok(beats()[1].signal.aborted);
    // One that is refused for load, or gets no answer, is made once more.
    await pass(6100);
    assert.equal(beats().length, 4);
    beats()[3].fail(new Error("cut"));
    await pass(8000);
    assert.equal(beats().length, 4);
    greendot.close();
    assert.ok(beats()[3].signal.aborted);
  }));

test("who only watches, and who asks the stream to vouch, does not beat", () => {
  for (const options of [{ watch: ["bob"] }, { user: "alice", vouch: "stream" }]) {
    const { asked } = stage(options);
    assert.equal(FakeSource.last.url.searchParams.get("vouch"), null);
    begin("1.1.a", { vouch: undefined }).ping();
    assert.deepEqual(asked, []);
  }
});

test("beats that reach another node than the stream: the stream vouches instead", () =>
  withClock(async (pass) => {
    const { beats, seen } = stage({ user: "alice" });
    const unknown = { ok: false, status: 404, json: async () => ({ detail: "no such stream" }) };
    const source = begin("1.1.a", { keep_alive_ms: 15000 });
    for (const count of [1, 2]) {
      assert.equal(FakeSource.last, source);
      source.ping();
      assert.equal(beats().length, count);
      beats().at(-1).answer(unknown);
      await pass(100);
    }
    assert.notEqual(FakeSource.last, source);
    assert.equal(FakeSource.last.url.searchParams.get("vouch"), null);
    assert.deepEqual(seen, ["error"]);
  }));

test("silence makes every state stale in time, and the next stream makes it right", () =>
  withClock(async (pass) => {
    const { greendot, seen, probes } = stage({ watch: ["bob", "carol"] });
    const source = begin("1.1.a");
    source.say("snapshot", { presence: ["bob", "carol"].map((u) => record(u, "online", 5)) }, "5");
    for (let n = 0; n < 10; n++) {
      await pass(990);
      source.ping();
    }
    assert.equal(greendot.stale, false);
    seen.length = 0;
    await pass(1200);
    assert.deepEqual(seen, []);
    await pass(300);
    assert.deepEqual(seen.slice(0, 3), ["stale", "bob online?", "carol online?"]);
    assert.deepEqual(greendot.get("bob"), { ...record("bob", "online", 5), stale: true });
    assert.equal(source.readyState, 2);
    const next = FakeSource.last;
    assert.notEqual(next, source);
    assert.equal(next.url.searchParams.get("last_event_id"), "5");
    // It hangs; the server is asked each second, and hangs too.
    await pass(10_000);
    assert.equal(FakeSource.last, next);
    assert.ok(probes().length >= 7 && probes().length <= 12, `${probes().length}`);
    assert.ok(probes()[0].signal.aborted);
    // It is back: another source within a second and a half.
    const before = probes().length;
    for (let ms = 0; probes().length === before && ms < 1500; ms += 50) await pass(50);
    probes().at(-1).answer({ ok: false, status: 0, type: "opaque" });
    await pass(50);
    assert.notEqual(FakeSource.last, next);
    seen.length = 0;
    begin("2.2.b").say("snapshot", { presence: [record("bob", "offline", 9)] }, "10");
    assert.deepEqual(seen, ["bob offline", "live", "carol online"]);
    assert.equal(greendot.get("carol").stale, undefined);
    assert.equal(greendot.stale, false);
    greendot.close();
  }));

test("a snapshot without an id makes all right, too, when a ping shows that it is whole", () =>
  withClock(async (pass) => {
    const { greendot, seen } = stage({ watch: ["bob"] });
    begin("1.1.a").say("snapshot", { presence: [record("bob", "online", 5)] }, "5");
    await pass(1500);
    assert.ok(greendot.get("bob").stale);
    const source = begin("2.2.b");
    source.say("snapshot", { presence: [] });
    assert.ok(greendot.get("bob").stale);
    source.ping();
    assert.deepEqual(seen.slice(-2), ["live", "bob online"]);
    greendot.close();
  }));

test("a server that said goodbye chooses when its readers come back", () =>
  withClock(async (pass) => {
    const { greendot, seen, probes } = stage({ watch: ["bob"] });
    const source = begin("1.1.a");
    source.say("goodbye", { reason: "draining" });
    source.fail(0);
    await pass(50_000);
    assert.deepEqual(seen, ["stale"]);
    assert.equal(FakeSource.last, source);
    assert.equal(probes().length, 0);
    // So long has none.
    await pass(15_000);
    assert.notEqual(FakeSource.last, source);
    greendot.close();
  }));

test("a source that connects and hears no hello is not made anew all the time", () =>
  withClock(async (pass) => {
    const { greendot, probes } = stage({ watch: ["bob"] });
    const before = FakeSource.all.length;
    for (let n = 0; n < 240; n++) {
      await pass(500);
      for (const probe of probes()) probe.answer({ ok: true, status: 200, type: "basic" });
    }
    const made = FakeSource.all.length - before;
    assert.ok(made >= 4 && made <= 12, `${made} in two minutes`);
    greendot.close();
  }));

test("the page's own word: offline is stale at once, online connects at once, a wake looks", () =>
  withClock(async (pass) => {
    const listeners = {};
    const target = {
      addEventListener: (kind, listener) => (listeners[kind] = listener),
      removeEventListener: (kind) => delete listeners[kind],
    };
    globalThis.addEventListener = target.addEventListener;
    globalThis.removeEventListener = target.removeEventListener;
    globalThis.document = { ...target, visibilityState: "visible" };
    try {
      const { greendot, seen } = stage({ watch: ["bob"] });
      const source = begin("1.1.a");
      listeners.visibilitychange();
      listeners.pageshow();
      assert.equal(greendot.stale, false);
      listeners.offline();
      assert.ok(greendot.stale);
      // It was not so: the stream goes on.
      source.ping();
      assert.equal(greendot.stale, false);
      listeners.offline();
      await pass(300);
      listeners.online();
      assert.notEqual(FakeSource.last, source);
      assert.equal(source.readyState, 2);
      const next = begin("2.2.b");
      next.ping();
      // Asleep: no timer ran.
      mock.timers.setTime(Date.now() + 60_000);
      seen.length = 0;
      listeners.visibilitychange();
      assert.equal(seen[0], "stale");
      greendot.close();
      assert.deepEqual(listeners, {});
    } finally {
      delete globalThis.addEventListener;
      delete globalThis.removeEventListener;
      delete globalThis.document;
    }
  }));

test("an edit that hangs is given up and made again; one of a lost stream ends with it", () =>
  withClock(async (pass) => {
    const { greendot, asked, seen } = stage({ watch: ["bob"] });
    const source = begin("1.1.a", { keep_alive_ms: 60000 });
    greendot.watch("carol");
    await pass(9900);
    assert.equal(asked.length, 1);
    await pass(1500);
    assert.ok(asked[0].signal.aborted);
    assert.equal(asked.length, 2);
    assert.deepEqual(asked[1].body, asked[0].body);
    assert.deepEqual(seen, ["error"]);
    source.fail(0);
    assert.ok(asked[1].signal.aborted);
    await pass(50);
    begin("2.2.b", { keep_alive_ms: 60000 });
    await pass(50);
    assert.equal(asked.at(-1).path, "/v1/stream/2.2.b/watch");
    asked.at(-1).answer({ ok: true, status: 200, type: "basic" });
    await pass(50);
    greendot.unwatch("carol");
    await pass(50);
    assert.deepEqual(JSON.parse(asked.at(-1).body), { add: [], remove: ["carol"] });
    greendot.close();
  }));

// A client where tokens are asked for: what was fetched, answered by `answer(path)`.
function withToken(options, answer) {
  const asked = [];
  const fetch = async (url, { headers, method }) => {
    asked.push(`${method} ${new URL(url).pathname} ${headers.Authorization ?? "-"}`);
    return answer(new URL(url).pathname, asked.length);
  };
  const greendot = new Client("http://server", { ...options, EventSource: FakeSource, fetch });
  const errors = [];
  greendot.on("error", (error) => errors.push(error));
  return { greendot, asked, errors };
}

const made = (ticket) => ({ ok: true, status: 200, json: async () => ({ ticket }) });
const ticketOf = (source) => source.url.searchParams.get("ticket");

test("a token opens streams by tickets, and goes with edits and beats as a header", async () => {
  let tokens = 0;
  const { greendot, asked } = withToken(
    { user: "me", watch: ["bob"], token: async () => `t${(tokens += 1)}` },
    (path, n) => (path === "/v1/ticket" ? made(`ticket-${n}`) : { ok: true, status: 204 }),
  );
  const before = FakeSource.all.length;
  greendot.watch("carol");
  await settle();
  assert.equal(FakeSource.all.length, before + 1);
  const source = FakeSource.last;
  assert.deepEqual(
    [ticketOf(source), source.url.searchParams.getAll("watch")],
    ["ticket-1", ["bob", "carol"]],
  );
  source.say("hello", { stream: "1.1.a", watching: 2, vouch: "self" });
  source.ping();
  greendot.unwatch("bob");
  await settle();
  assert.deepEqual(asked, [
    "POST /v1/ticket Bearer t1",
    "POST /v1/stream/1.1.a/beat Bearer t2",
    "POST /v1/stream/1.1.a/watch Bearer t3",
  ]);
  greendot.close();
});

test("each stream has a ticket of its own; the browser's own return is no failure", async () => {
  let tickets = 0;
  const { greendot, asked, errors } = withToken(
    { watch: ["bob"], ticket: async () => `own-${(tickets += 1)}` },
    () => ({ ok: true, status: 200 }),
  );
  await settle();
  for (let n = 1; n <= 5; n++) {
    const source = FakeSource.last;
    assert.deepEqual([ticketOf(source), tickets], [`own-${n}`, n]);
    source.hello(`1.${n}.a`, 1);
    source.say("snapshot", { presence: [record("bob", "online", 5)] }, `${n}0`);
    // The browser waits as long as the server said, comes back, and is answered 204.
    source.fail(0);
    await settle();
    assert.equal(FakeSource.last, source);
    source.fail(2);
    await settle();
    assert.notEqual(FakeSource.last, source);
    assert.equal(FakeSource.last.url.searchParams.get("last_event_id"), `${n}0`);
  }
  assert.deepEqual([asked, errors], [[], []]);
  greendot.close();
});

test("without a ticket it is asked for again, later and later", () =>
  withClock(async (pass) => {
    let asked = 0;
    const { greendot, errors } = withToken(
      {
        ticket: async () => {
          if ((asked += 1) < 4) throw new Error("who are you?");
          return "at last";
        },
      },
      () => ({ ok: true, status: 200 }),
    );
    const before = FakeSource.all.length;
    await pass(700);
    assert.equal(asked, 1);
    await pass(600);
    assert.equal(asked, 2);
    await pass(1400);
    assert.equal(asked, 2);
    await pass(6000);
    assert.equal(asked, 4);
    assert.deepEqual(errors, Array(3).fill({ status: 0, detail: "who are you?" }));
    assert.deepEqual([FakeSource.all.length, ticketOf(FakeSource.last)], [before + 1, "at last"]);
    // A source that the server refuses before any hello waits too.
    FakeSource.last.fail(2);
    await pass(300);
    assert.equal(asked, 4);
    greendot.close();
  }));

test("a ticket that never comes is given up, and one that comes too late opens nothing", () =>
  withClock(async (pass) => {
    const waiting = [];
    const { greendot, errors } = withToken(
      { ticket: () => new Promise((done) => waiting.push(done)) },
      () => ({ ok: true, status: 200 }),
    );
    const before = FakeSource.all.length;
    await pass(11_500);
    assert.deepEqual([waiting.length, errors[0].detail], [2, "no ticket in time"]);
    waiting[0]("late");
    await pass(50);
    assert.equal(FakeSource.all.length, before);
    greendot.close();
    waiting[1]("closed");
    await pass(50);
    assert.equal(FakeSource.all.length, before);
  }));

test("where nobody is asked for a token there are no tickets, and none is missing", async () => {
  const { greendot, errors } = withToken({ watch: ["bob"], token: async () => "t" }, () => ({
    ok: false,
    status: 404,
    json: async () => ({ detail: "nobody is asked" }),
  }));
  await settle();
  await settle();
  assert.equal(ticketOf(FakeSource.last), null);
  assert.deepEqual(errors, []);
  greendot.close();
});

test("a ticket that is refused is an error with the server's words", async () => {
  const { greendot, errors } = withToken({ token: async () => "t" }, () => ({
    ok: false,
    status: 413,
    json: async () => ({ detail: "send the token as a header or in the cookie" }),
  }));
  await settle();
  await settle();
  assert.deepEqual(errors, [
    { status: 413, detail: "send the token as a header or in the cookie" },
  ]);
  greendot.close();
});
