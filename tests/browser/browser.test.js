// client.js in a real browser against the real server: `node --test tests/browser/`.
// GREENDOT names the server's program. Skipped where there is no Chromium.
"use strict";

const { test, before, after } = require("node:test");
const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const { Chromium, find } = require("./chromium.js");

const PROGRAM = process.env.GREENDOT ?? path.join(__dirname, "../../target/debug/greendot");
const KEEP_ALIVE_MS = 2000;
const OFFLINE_AFTER_MS = 3000;
// Longest wait for what must come.
const PATIENCE_MS = 20_000;

const chromium = find();
const skip = chromium === null && "there is no Chromium";

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(what, look) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < end, `waited in vain: ${what}`);
    await pause(50);
  }
}

// A server of its own folder and ports.
async function serve(keepAliveMs = KEEP_ALIVE_MS) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-server-"));
  const server = spawn(PROGRAM, [
    "serve",
    "--http=127.0.0.1:0",
    "--udp=127.0.0.1:0",
    `--data-dir=${folder}/data`,
    "--memory=off",
    "--shards=2",
    "--beat-interval-ms=1000",
    `--offline-after-ms=${OFFLINE_AFTER_MS}`,
    "--sweep-interval-ms=50",
    `--keep-alive-ms=${keepAliveMs}`,
  ]);
  let said = "";
  server.stderr.on("data", (text) => (said += text));
  const port = await new Promise((done, fail) => {
    server.once("exit", (code) => fail(new Error(`the server ended with ${code}: ${said}`)));
    server.stdout.on("data", (text) => {
      const found = /http=127\.0\.0\.1:(\d+)/.exec(text);
      if (found) done(Number(found[1]));
    });
  });
  const close = async () => {
    const ended = new Promise((done) => server.once("exit", done));
    server.kill("SIGKILL");
    await ended;
    fs.rmSync(folder, { recursive: true, force: true });
  };
  const status = async (user) => {
    const answer = await fetch(`http://127.0.0.1:${port}/v1/presence/${user}`);
    return answer.json();
  };
  const beat = (user) =>
    fetch(`http://127.0.0.1:${port}/v1/beat`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ users: [user] }),
    });
  return { port, close, status, beat };
}

// A relay that can be cut in silence: its sockets stay open, and nothing comes through. Sockets of
// before a cut are dead for good.
async function relay(port) {
  const sockets = new Set();
  let cut = false;
  const listener = net.createServer((client) => {
    sockets.add(client);
    client.on("error", () => {});
    if (cut) return;
    const server = net.connect(port, "127.0.0.1");
    sockets.add(server);
    server.on("error", () => client.destroy());
    let dead = false;
    for (const [from, to] of [
      [client, server],
      [server, client],
    ]) {
      from.on("data", (bytes) => dead || to.write(bytes));
      from.on("close", () => dead || to.destroy());
    }
    cutters.push(() => (dead = true));
  });
  let cutters = [];
  await new Promise((done) => listener.listen(0, "127.0.0.1", done));
  return {
    port: listener.address().port,
    cut() {
      cut = true;
      cutters.forEach((kill) => kill());
      cutters = [];
    },
    heal() {
      cut = false;
    },
    close() {
      listener.close();
      sockets.forEach((socket) => socket.destroy());
    },
  };
}

let server, browser;

before(async () => {
  if (skip) return;
  [server, browser] = [await serve(), new Chromium(chromium)];
});

after(async () => {
  await browser?.close();
  await server?.close();
});

// A page with a client that is online as `user`, watches bob and tells what it was told.
async function open(port, user) {
  const page = await browser.open(`http://127.0.0.1:${port}/`);
  await until("the page has loaded", () =>
    page.evaluate("document.readyState === 'complete' && typeof Greendot === 'function'"),
  );
  await page.evaluate(`
    window.told = [];
    window.client = new Greendot("", { user: ${JSON.stringify(user)}, watch: ["bob"] });
    for (const kind of ["open", "stale", "live", "error"])
      client.on(kind, () => told.push([kind, Date.now()]));
    undefined`);
  await until(`${user} is online`, async () => (await server.status(user)).status === "online");
  return page;
}

test("a hidden page stays online, however seldom its timers run", { skip }, async () => {
  const page = await open(server.port, "hidden");
  const other = await browser.open("about:blank");
  await other.front();
  await until("it is hidden", () => page.evaluate("document.visibilityState === 'hidden'"));
  const { since } = await server.status("hidden");
  // A timer that sets itself again is throttled, which shows that the page is.
  await page.evaluate(`
    window.ticks = 0;
    (function tick() { ticks++; setTimeout(tick, 10); })();`);
  for (let n = 0; n < 40; n++) {
    const record = await server.status("hidden");
    assert.deepEqual([record.status, record.since], ["online", since]);
    await pause(250);
  }
  const ticks = await page.evaluate("ticks");
  assert.ok(ticks < 100, `${ticks} ticks in ten seconds: the page was not throttled`);
  assert.equal(await page.evaluate("client.stale"), false);
});

test("a frozen page is offline in time, and online again when it goes on", { skip }, async () => {
  await open(server.port, "frozen");
  const renderers = browser.renderers();
  assert.ok(renderers.length > 0);
  const frozenAt = Date.now();
  try {
    renderers.forEach((pid) => process.kill(pid, "SIGSTOP"));
    const record = await until("it is offline", async () => {
      const record = await server.status("frozen");
      return record.status === "offline" && record;
    });
    // The true time, one clock being both sides'. What was on its way may have come.
    assert.ok(record.last_active <= frozenAt + 100, `${record.last_active} > ${frozenAt}`);
    assert.ok(record.since >= record.last_active + OFFLINE_AFTER_MS);
  } finally {
    renderers.forEach((pid) => process.kill(pid, "SIGCONT"));
  }
  await until("it is back", async () => (await server.status("frozen")).status === "online");
});

test("cut off a page says so, and is right when the network is back", { skip }, async () => {
  const wire = await relay(server.port);
  try {
    const page = await open(wire.port, "cut");
    await server.beat("bob");
    const shown = "(({ status, stale }) => [status, stale ?? false])(client.get('bob') ?? {})";
    const shows = async (wanted) =>
      JSON.stringify(await page.evaluate(shown)) === JSON.stringify(wanted);
    await until("bob is online there", () => shows(["online", false]));
    wire.cut();
    const cutAt = Date.now();
    await until("bob's state is stale", () => shows(["online", true]));
    const [, staleAt] = (await page.evaluate("told")).find(([kind]) => kind === "stale");
    // The last ping was up to a beat interval before the cut; a loaded machine is late.
    assert.ok(staleAt <= cutAt + 1.5 * KEEP_ALIVE_MS + 1000, `${staleAt - cutAt} ms`);
    await until("bob is offline", async () => (await server.status("bob")).status === "offline");
    await pause(1000);
    wire.heal();
    const healedAt = Date.now();
    await until("bob is offline there", () => shows(["offline", false]));
    const [, liveAt] = (await page.evaluate("told")).findLast(([kind]) => kind === "live");
    assert.ok(liveAt <= healedAt + 2000 + 1000, `${liveAt - healedAt} ms`);
    await until("it is online", async () => (await server.status("cut")).status === "online");
  } finally {
    wire.close();
  }
});

test("on the dashboard of a dead server no dot is green", { skip }, async () => {
  // A stream may be silent for so long that only the page's own questions can tell.
  const doomed = await serve(60_000);
  const page = await browser.open(`http://127.0.0.1:${doomed.port}/#watch=bob`);
  const green = () => page.evaluate("document.querySelectorAll('.dot.online').length");
  await until("server and bob have green dots", async () => {
    await doomed.beat("bob");
    return (await green()) === 2;
  });
  await doomed.close();
  await until("none is green", async () => (await green()) === 0);
  const words = await page.evaluate("document.querySelector('#watched .words').textContent");
  assert.match(words, /^online .*\(last known\)$/);
});
