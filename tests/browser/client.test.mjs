// The client in a real browser against the real server: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import net from "node:net";
import {
  begin,
  launch,
  launchBare,
  open,
  pause,
  renderers,
  serve,
  site,
  skip,
  until,
} from "./harness.mjs";

const OFFLINE_AFTER_MS = 3000;
// How long a page is hidden; tests/long says ten minutes.
const HIDDEN_MS = Number(process.env.HIDDEN_MS ?? 6000);
const FAST = [
  "--retry-ms=200",
  "--beat-interval-ms=1000",
  `--offline-after-ms=${OFFLINE_AFTER_MS}`,
  "--keep-alive-ms=2000",
];

let server, browser, pages;

before(async () => {
  if (skip) return;
  [server, browser, pages] = [await serve(...FAST), await launch(), await site()];
});

after(async () => {
  await browser?.close();
  pages?.close();
  await server?.close();
});

// A page of its own browser profile, in which `user` is online and watches the others.
async function alone(user, watch = [], of = server, url = pages.url) {
  const context = await browser.newContext();
  const page = await open(context, url, of, { user }, watch);
  await until(`${user} is online`, async () => (await of.status(user)).online);
  return { context, page, close: () => context.close() };
}

const told = (page) => page.evaluate(() => told);
const state = (page, user) =>
  page.evaluate((user) => {
    const { status, stale } = gd.get(user) ?? {};
    return `${status}${stale ? "?" : ""}`;
  }, user);
const shows = (page, user, expected) =>
  until(`${user} is ${expected}`, async () => (await state(page, user)) === expected);

// A user who goes only when the page knows that it hears nothing.
const staysUntilStale = (page, user) =>
  until(`${user} is the last known`, async () => {
    await server.beat(user);
    return (await state(page, user)) === "online?";
  });

// A relay that can be cut in silence: its sockets stay open, and nothing comes through. Sockets of
// before a cut are dead for good.
async function relay(port) {
  const sockets = new Set();
  let isCut = false;
  let cutters = [];
  const listener = net.createServer((client) => {
    sockets.add(client);
    client.on("error", () => {});
    if (isCut) return;
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
  await new Promise((done) => listener.listen(0, "127.0.0.1", done));
  return {
    url: `http://127.0.0.1:${listener.address().port}`,
    cut() {
      isCut = true;
      cutters.forEach((kill) => kill());
      cutters = [];
    },
    heal() {
      isCut = false;
    },
    close() {
      listener.close();
      sockets.forEach((socket) => socket.destroy());
    },
  };
}

test("two pages see each other come, change and go", { skip }, async () => {
  const anna = await alone("anna", ["ben"]);
  await shows(anna.page, "ben", "offline");
  const ben = await alone("ben", ["anna"]);
  await shows(anna.page, "ben", "online");
  await shows(ben.page, "anna", "online");
  await ben.page.evaluate(() => gd.setStatus("busy"));
  await shows(anna.page, "ben", "busy");
  await ben.page.evaluate(() => gd.setInvisible(true));
  await shows(anna.page, "ben", "offline");
  await ben.page.evaluate(async () => (await gd.setInvisible(false), gd.setStatus("online")));
  await shows(anna.page, "ben", "online");
  const asked = await anna.page.evaluate(async () =>
    (await gd.query(["ben", "nobody"])).map(({ user, status, since }) => [
      user,
      status,
      since === null,
    ]),
  );
  assert.deepEqual(asked, [
    ["ben", "online", false],
    ["nobody", "offline", true],
  ]);
  await ben.page.evaluate(() => gd.leave());
  await shows(anna.page, "ben", "offline");
  assert.deepEqual(await anna.page.evaluate(() => errors), []);
  await Promise.all([anna.close(), ben.close()]);
});

test("a hidden page stays online, however seldom its timers run", { skip }, async () => {
  const { context, close } = await launchBare();
  const page = await open(context, pages.url, server, { user: "hidden" });
  await until("it is online", async () => (await server.status("hidden")).online);
  const other = await context.newPage();
  await other.bringToFront();
  await until("it is hidden", () => page.evaluate(() => document.visibilityState === "hidden"));
  const { since } = await server.status("hidden");
  // A timer that sets itself again is throttled, which shows that the page is.
  await page.evaluate(() => {
    window.ticks = 0;
    (function tick() {
      ticks++;
      setTimeout(tick, 10);
    })();
  });
  for (let n = 0; n < HIDDEN_MS / 250; n++) {
    const record = await server.status("hidden");
    assert.deepEqual([record.status, record.since], ["online", since]);
    await pause(250);
  }
  const ticks = await page.evaluate(() => ticks);
  assert.ok(ticks < HIDDEN_MS / 60, `${ticks} ticks: the page was not throttled`);
  assert.equal(await page.evaluate(() => gd.live), true);
  await close();
});

test("who touches no tab for long is away, and is back with a touch", { skip }, async () => {
  const resting = await serve(
    "--retry-ms=200",
    "--beat-interval-ms=2000",
    "--offline-after-ms=6000",
    "--keep-alive-ms=2000",
    "--away-after=4000",
  );
  const context = await browser.newContext();
  try {
    const options = { user: "idle", idle: true };
    const page = await open(context, pages.url, resting, options, ["other"]);
    // One that does not lead.
    const tab = await open(context, pages.url, resting, options);
    const other = await alone("other", ["idle"], resting);
    await shows(other.page, "idle", "online");
    await shows(other.page, "idle", "away");
    // Who does not say so is at the device for as long as the page answers.
    assert.equal(await state(page, "other"), "online");
    // Away goes on by itself.
    const { since } = await resting.status("idle");
    await pause(1500);
    const later = await resting.status("idle");
    assert.deepEqual([later.status, later.since], ["away", since]);
    // Touches within ten seconds of each other are one.
    await until("idle is back", async () => {
      await tab.mouse.move(Math.random() * 300, 100);
      return (await state(other.page, "idle")) === "online";
    });
    await other.close();
  } finally {
    await context.close();
    await resting.close();
  }
});

test("a frozen page is offline in time, and online again when it goes on", { skip }, async () => {
  const { close } = await alone("frozen");
  const pids = renderers();
  assert.ok(pids.length > 0);
  const frozenAt = Date.now();
  try {
    pids.forEach((pid) => process.kill(pid, "SIGSTOP"));
    const record = await until("it is offline", async () => {
      const record = await server.status("frozen");
      return record.status === "offline" && record;
    });
    // The true time, one clock being both sides'. What was on its way may have come.
    assert.ok(record.last_active <= frozenAt + 100, `${record.last_active} > ${frozenAt}`);
    assert.ok(record.since >= record.last_active + OFFLINE_AFTER_MS);
  } finally {
    pids.forEach((pid) => process.kill(pid, "SIGCONT"));
  }
  await until("it is back", async () => (await server.status("frozen")).status === "online");
  await close();
});

test("cut off a page says so, and is right when the network is back", { skip }, async () => {
  const wire = await relay(server.port);
  try {
    const cut = await alone("cut", ["bob"], { ...server, url: wire.url });
    await server.beat("bob");
    await shows(cut.page, "bob", "online");
    wire.cut();
    await staysUntilStale(cut.page, "bob");
    assert.equal(await cut.page.evaluate(() => gd.live), false);
    await until("bob is offline", async () => (await server.status("bob")).status === "offline");
    await pause(1000);
    wire.heal();
    await shows(cut.page, "bob", "offline");
    await until("it is online", async () => (await server.status("cut")).status === "online");
    await cut.close();
  } finally {
    wire.close();
  }
});

test("a page whose device is offline is right soon after", { skip }, async () => {
  const { context, page, close } = await alone("commuter", ["erin"]);
  await server.beat("erin");
  await shows(page, "erin", "online");
  await context.setOffline(true);
  // It is told so, for however short a time: a ping may still come.
  await until("erin is the last known", async () => {
    await server.beat("erin");
    return (await told(page)).includes("erin online?");
  });
  await until("erin has gone", async () => (await server.status("erin")).status === "offline");
  await context.setOffline(false);
  await shows(page, "erin", "offline");
  await until("it is back", async () => (await server.status("commuter")).online);
  await close();
});

test("a server that restarts is seen by nobody", { skip }, async () => {
  const doomed = await serve(...FAST);
  const one = await alone("one", ["other"], doomed);
  const other = await alone("other", ["one"], doomed);
  await shows(one.page, "other", "online");
  await shows(other.page, "one", "online");
  const before = await doomed.status("one");
  for (const signal of ["SIGTERM", "SIGKILL"]) {
    await doomed.end(signal);
    await doomed.start();
    await until("both streams are back", async () => (await doomed.sum("greendot_streams")) === 2);
  }
  await pause(OFFLINE_AFTER_MS + 1000);
  assert.equal((await doomed.status("one")).since, before.since);
  for (const { page } of [one, other]) {
    const seen = (await told(page)).map((text) => text.replace(/^\w+ /, ""));
    assert.ok(!seen.slice(seen.indexOf("online")).includes("offline"), `${seen}`);
  }
  await Promise.all([one.close(), other.close()]);
  await doomed.close();
});

test("a page that is reloaded again and again has not gone", { skip }, async () => {
  const watcher = await alone("watcher", ["reloader"]);
  const reloader = await alone("reloader");
  await shows(watcher.page, "reloader", "online");
  const { since } = await server.status("reloader");
  for (let n = 0; n < 10; n++) {
    await reloader.page.reload();
    await begin(reloader.page, server, { user: "reloader" }, []);
    if (n % 3 === 0) await pause(300);
  }
  await pause(OFFLINE_AFTER_MS + 500);
  assert.deepEqual(await told(watcher.page), ["reloader offline", "reloader online"]);
  assert.equal((await server.status("reloader")).since, since);
  await reloader.close();
  // Gone for good, it is told as what it was: a goodbye.
  await shows(watcher.page, "reloader", "offline");
  await watcher.close();
});

test("whatever a user is called", { skip }, async () => {
  const ids = [
    "<img src=x onerror=alert(1)>",
    "a&watch=b",
    "../../livez?x#y",
    "%2e%2e%00",
    "\u202Eevil\u2028",
    "\u{1F7E2} +",
    "__proto__",
    "constructor",
    "x".repeat(128),
  ];
  const { page, close } = await alone("called", ids);
  for (const id of ids) await server.beat(id);
  for (const id of ids) await shows(page, id, "online");
  await close();
});

test("a page of a strict policy needs nothing but the server's name in it", { skip }, async () => {
  const policy = [
    "default-src 'none'",
    `script-src ${server.url} 'nonce-test'`,
    `connect-src ${server.url}`,
    "require-trusted-types-for 'script'",
  ].join("; ");
  const html = `<!doctype html><title>strict</title><script type="module" nonce="test">
    import { Greendot } from "${server.url}/client.js";
    window.violations = [];
    addEventListener("securitypolicyviolation", ({ blockedURI }) => violations.push(blockedURI));
    window.gd = new Greendot({ url: "${server.url}", user: "strict" });
    gd.watch("strict");
  </script>`;
  const strict = await site({ "/": html }, { "Content-Security-Policy": policy });
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(strict.url);
  await shows(page, "strict", "online");
  await page.evaluate(() => gd.setStatus("away"));
  await shows(page, "strict", "away");
  assert.deepEqual(await page.evaluate(() => violations), []);
  await context.close();
  strict.close();
});

test("on the dashboard of a dead server no dot is green", { skip }, async () => {
  // A stream may be silent for so long that only the page's own questions can tell.
  const doomed = await serve("--keep-alive-ms=60000");
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${doomed.url}/#watch=bob`);
  const green = () => page.locator(".dot.online").count();
  await until("server and bob have green dots", async () => {
    await doomed.beat("bob");
    return (await green()) === 2;
  });
  await doomed.close();
  await until("none is green", async () => (await green()) === 0);
  const words = await page.locator("#watched .words").textContent();
  assert.match(words, /^online .*\(last known\)$/);
  await context.close();
});
