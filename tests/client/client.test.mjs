// The client against a fake EventSource and a fake fetch: `node --test tests/client/`.

import { mock, test } from "node:test";
import assert from "node:assert/strict";
import { Greendot } from "../../src/web/client/client.js";
import { FakeSource, record, settle } from "./fakes.mjs";

const TOLD = { ok: true, status: 204 };

// A client, what it asked of the server, and what it was told.
async function start(options = {}, answer = () => TOLD) {
  const asked = [];
  const fetch = async (url, { method, body, headers, keepalive }) => {
    const { pathname } = new URL(url);
    const json = body && JSON.parse(body);
    asked.push([`${method} ${pathname}`, json, headers?.Authorization, keepalive]);
    return answer(pathname, method);
  };
  const gd = new Greendot({ url: "http://server/", EventSource: FakeSource, fetch, ...options });
  const errors = [];
  gd.on("error", (error) => errors.push([error.name, error.status, error.message]));
  await settle();
  return { gd, asked, errors, source: FakeSource.last };
}

const state = (user, status, since, stale = false) => ({
  user,
  status,
  online: status !== "offline",
  stale,
  since,
  lastActive: since,
});

const answered = (body) => ({ ok: true, status: 200, json: async () => body });
const refused = (status, detail) => ({ ok: false, status, json: async () => ({ detail }) });

test("each listener is told of whom it watches, at once and at each change", async () => {
  const { gd, source } = await start({ user: "alice" });
  assert.equal(source.url.searchParams.get("user"), "alice");
  const [first, second, all] = [[], [], []];
  gd.on("state", (state) => all.push(state));
  const stop = gd.watch("bob", (state) => first.push(state));
  await settle();
  source.hello("1.1.a", 0);
  source.say("snapshot", { presence: [record("bob", "online", 5)] }, "10");
  assert.deepEqual([first, all], [[state("bob", "online", 5)], [state("bob", "online", 5)]]);
  gd.watch(["bob", "carol"], (state) => second.push(state));
  assert.deepEqual(second, []);
  await settle();
  assert.deepEqual(second, [state("bob", "online", 5)]);
  source.say("presence", record("carol", "away", 11), "11");
  stop();
  source.say("presence", record("bob", "offline", 12), "12");
  assert.deepEqual(first, [state("bob", "online", 5)]);
  assert.deepEqual(second.slice(1), [state("carol", "away", 11), state("bob", "offline", 12)]);
  assert.deepEqual(gd.get("carol"), state("carol", "away", 11));
  assert.equal(gd.get("eve"), undefined);
  gd.close();
});

test("whom nobody listens to any more is watched no more", async () => {
  const { gd, source, asked } = await start();
  source.hello("1.1.a", 0);
  const [one, other] = [gd.watch("bob"), gd.watch(["bob", "carol"])];
  await settle();
  asked.length = 0;
  one();
  one();
  await settle();
  assert.deepEqual(asked, []);
  other();
  await settle();
  assert.deepEqual(asked, [
    ["POST /v1/stream/1.1.a/watch", { add: [], remove: ["bob", "carol"] }, undefined, undefined],
  ]);
  assert.equal(gd.get("bob"), undefined);
  gd.close();
});

test("whoever is watched again before the server was told is known at once", async () => {
  const { gd, source } = await start();
  source.hello("1.1.a", 0);
  const stop = gd.watch("bob");
  await settle();
  source.say("snapshot", { presence: [record("bob", "online", 5)] }, "10");
  stop();
  const seen = [];
  gd.watch("bob", (state) => seen.push(state));
  await settle();
  assert.deepEqual(seen, [state("bob", "online", 5)]);
  gd.close();
});

test("what can not be a user's id is refused at once", async () => {
  const { gd, source } = await start();
  gd.watch(["x".repeat(128), "\u00e9".repeat(64), "\u{1F7E2}", "a/b%2F+ "]);
  const bad = ["", "x".repeat(129), "\u00e9".repeat(65), "a\u0000", "\u001f", "\u007f", "\u009f"];
  for (const user of [...bad, "\ud800", "a\udc00b", 7, null]) {
    assert.throws(() => gd.watch(["dave", user]), RangeError, JSON.stringify(user));
    await assert.rejects(gd.query(user), RangeError);
    if (user !== null) assert.throws(() => new Greendot({ url: "http://a", user }), RangeError);
  }
  assert.throws(() => gd.watch("a\u0007b"), {
    message: '"a\\u0007b" is no user: 1 to 128 bytes of UTF-8 without control characters',
  });
  assert.throws(() => new Greendot(), { message: "url is missing: where is greendot?" });
  assert.throws(() => gd.on("presense", () => {}), {
    message: "no such event: presense; there are state,live,error",
  });
  assert.equal(FakeSource.last, source);
  gd.close();
});

test("a query asks once", async () => {
  const presence = [record("bob", "busy", 3), record("carol", "offline", null)];
  const { gd, asked } = await start({}, (path) =>
    path === "/v1/presence/query" ? answered({ presence }) : TOLD,
  );
  assert.deepEqual(await gd.query(["bob", "carol"]), [
    state("bob", "busy", 3),
    state("carol", "offline", null),
  ]);
  const users = ["bob", "carol"];
  assert.deepEqual(asked, [["POST /v1/presence/query", { users }, undefined, undefined]]);
  gd.close();
});

test("what the server refuses is an error in its words", async () => {
  const { gd } = await start({ user: "alice" }, () => refused(403, "not you"));
  const expected = { name: "GreendotError", status: 403, message: "not you" };
  await assert.rejects(gd.query("bob"), expected);
  await assert.rejects(gd.setStatus("busy"), expected);
  gd.close();
});

test("a status is said of the user; before the stream opens, if it comes first", async () => {
  const before = FakeSource.all.length;
  let answer;
  const asked = [];
  const fetch = (url, { body }) => {
    asked.push([new URL(url).pathname, JSON.parse(body)]);
    return new Promise((done) => (answer = done));
  };
  const options = { url: "http://server", EventSource: FakeSource, fetch };
  const gd = new Greendot({ ...options, user: "alice" });
  const said = gd.setInvisible(true);
  await settle();
  assert.deepEqual(asked, [["/v1/status", { user: "alice", invisible: true }]]);
  assert.equal(FakeSource.all.length, before);
  answer(answered({}));
  assert.equal(await said, undefined);
  await settle();
  assert.equal(FakeSource.all.length, before + 1);
  gd.close();
  const me = new Greendot({ ...options, user: "me" });
  me.setStatus("away");
  await settle();
  assert.deepEqual(asked.at(-1), ["/v1/status", { status: "away" }]);
  me.close();
  const nobody = new Greendot(options);
  await assert.rejects(nobody.setStatus("away"), { message: "only a `user` has a status" });
  nobody.close();
});

test("a goodbye names the stream, and is the end", async () => {
  const { gd, source, asked, errors } = await start({ user: "alice" });
  source.hello("1.1.a", 0);
  await gd.leave();
  const goodbye = { stream: "1.1.a", users: ["alice"] };
  assert.deepEqual(asked, [["POST /v1/leave", goodbye, undefined, undefined]]);
  assert.equal(source.readyState, 2);
  assert.deepEqual(errors, []);
});

test("after a goodbye what is shown is the last known", async () => {
  const { gd, source } = await start({ user: "alice" });
  const told = [];
  gd.watch("bob", (state) => told.push(state));
  await settle();
  source.hello("1.1.a", 1);
  source.say("snapshot", { presence: [record("bob", "online", 5)] }, "10");
  await gd.leave();
  const stale = state("bob", "online", 5, true);
  assert.deepEqual([told, gd.get("bob")], [[state("bob", "online", 5), stale], stale]);
});

test("who was logged out elsewhere does not come back", async () => {
  for (const [kind, said] of [
    ["bye", {}],
    ["goodbye", { reason: "left" }],
  ]) {
    const { gd, source, errors } = await start({ user: "alice" });
    const lives = [];
    gd.on("live", (live) => lives.push(live));
    source.hello("1.1.a", 0);
    source.say(kind, said, "bye");
    await settle();
    assert.deepEqual([source.readyState, FakeSource.last, lives], [2, source, [true, false]]);
    const detail = "the user has left, here or elsewhere: make another Greendot to return";
    assert.deepEqual(errors, [["GreendotError", 0, detail]]);
  }
});

test("a listener that throws is reported and stops nothing", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    const { gd, source } = await start();
    const seen = [];
    gd.watch(["bob", "carol"], () => {
      throw new Error("fault");
    });
    gd.watch("bob", (state) => seen.push(state.user));
    await settle();
    source.hello("1.1.a", 2);
    source.say("snapshot", { presence: [record("bob", "online", 5), record("carol", "busy", 5)] });
    assert.deepEqual([reported, seen], [["fault", "fault"], ["bob"]]);
    gd.close();
  } finally {
    delete globalThis.reportError;
  }
});

// Why a stream is refused, by what is answered to the questions that follow.
async function why(answers, origin) {
  globalThis.location = { origin };
  try {
    const { gd, errors, source } = await start({}, (path, method) => {
      const answer = answers[`${method} ${path}`];
      if (answer === undefined) throw new TypeError("failed to fetch");
      return answer;
    });
    source.fail(2);
    source.fail(2);
    for (let n = 0; n < 10; n++) await settle();
    gd.close();
    return errors.map(([, status, message]) => [status, message]);
  } finally {
    delete globalThis.location;
  }
}

test("why a stream is refused is said once, with what to do", async () => {
  const origin = "https://app.example";
  assert.deepEqual(await why({}, origin), [
    [0, "no answer from http://server: does greendot run there?"],
  ]);
  const opaque = { ok: false, status: 0, type: "opaque" };
  assert.deepEqual(await why({ "GET /livez": opaque }, origin), [
    [0, "this origin is not listed: --cors-origins https://app.example"],
  ]);
  for (const none of ["null", "file://"])
    assert.deepEqual(await why({ "GET /livez": opaque }, none), [
      [0, "a page from a file has no origin: serve it over HTTP"],
    ]);
  const [head, get] = [refused(401), refused(401, "expired: get another token")];
  assert.deepEqual(await why({ "HEAD /v1/stream": head, "GET /v1/stream": get }, origin), [
    [401, "expired: get another token"],
  ]);
  assert.deepEqual(await why({ "HEAD /v1/stream": TOLD }, origin), []);
});

test("a stream that is refused for one user opens at once, and edits find out whom", async () => {
  const refusals = {
    "HEAD /v1/stream": refused(403),
    "GET /v1/stream": refused(403, "not eve"),
  };
  const answer = (path, method) => refusals[`${method} ${path}`] ?? TOLD;
  const { gd, asked, errors, source } = await start({}, answer);
  gd.watch(["bob", "eve"]);
  source.fail(2);
  for (let n = 0; n < 10; n++) await settle();
  assert.deepEqual(errors, [["GreendotError", 403, "not eve"]]);
  assert.notEqual(FakeSource.last, source);
  assert.deepEqual(FakeSource.last.url.searchParams.getAll("watch"), []);
  FakeSource.last.hello("1.1.a", 0);
  await settle();
  const edit = { add: ["bob", "eve"], remove: [] };
  assert.deepEqual(asked.at(-1).slice(0, 2), ["POST /v1/stream/1.1.a/watch", edit]);
  gd.close();
});

test("without a listener for errors they are warnings", async () => {
  const warned = [];
  const { warn } = console;
  console.warn = (text) => warned.push(text);
  try {
    const gd = new Greendot({ url: "http://server", EventSource: FakeSource });
    await settle();
    FakeSource.last.say("overloaded", { reason: "connections" });
    assert.deepEqual(warned, ["greendot: the server is at a limit: connections"]);
    gd.close();
  } finally {
    console.warn = warn;
  }
});

test("where there are no Web Locks each tab has a stream of its own, and says so", async () => {
  const warned = [];
  const { warn } = console;
  console.warn = (text) => warned.push(text);
  const { navigator } = globalThis;
  const page = { addEventListener() {}, removeEventListener() {} };
  Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
  globalThis.document = page;
  try {
    const before = FakeSource.all.length;
    const tabs = [await start({ user: "alice" }), await start({ user: "alice" })];
    assert.equal(FakeSource.all.length, before + 2);
    const text = "greendot: no Web Locks without HTTPS: a stream for each tab";
    assert.deepEqual(warned, [text, text]);
    for (const { gd } of tabs) gd.close();
  } finally {
    console.warn = warn;
    delete globalThis.document;
    Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
  }
});

test("for how long nobody has been there is said with beats, if it is asked for", async () => {
  const listeners = {};
  globalThis.addEventListener = (kind, listener) => (listeners[kind] = listener);
  globalThis.removeEventListener = () => {};
  mock.timers.enable({ apis: ["Date"], now: 1764009600000 });
  try {
    const { gd, asked, source } = await start({ user: "alice", idle: true });
    source.say("hello", { stream: "1.1.a", vouch: "self" });
    mock.timers.setTime(1764009600000 + 300_000);
    source.ping();
    await settle();
    // Back: that is said at once, and once.
    listeners.keydown();
    listeners.pointermove();
    await settle();
    const beats = asked.map(([call, json]) => [call, json]);
    const beat = "POST /v1/stream/1.1.a/beat";
    assert.deepEqual(beats, [
      [beat, { idle_ms: 300_000 }],
      [beat, { idle_ms: 0 }],
    ]);
    gd.close();
  } finally {
    mock.timers.reset();
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  }
});
