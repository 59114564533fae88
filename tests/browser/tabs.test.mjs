// One stream for all tabs of an origin, in a real browser: `node --test tests/browser/`.

import { after, afterEach, before, test } from "node:test";
import assert from "node:assert/strict";
import { launch, open, pause, serve, site, skip, until } from "./harness.mjs";

const OFFLINE_AFTER_MS = 6000;

let server, browser, pages;

before(async () => {
  if (skip) return;
  server = await serve(
    "--retry-ms=200",
    "--beat-interval-ms=1000",
    `--offline-after-ms=${OFFLINE_AFTER_MS}`,
  );
  [browser, pages] = [await launch(), await site()];
});

after(async () => {
  await browser?.close();
  pages?.close();
  await server?.close();
});

afterEach(async () => {
  for (const context of browser?.contexts() ?? []) await context.close();
});

const streams = () => server.sum("greendot_streams");
const told = (page) => page.evaluate(() => told);
const shows = (page, user, expected) =>
  until(`${user} is ${expected}`, () =>
    page.evaluate(([user, expected]) => gd.get(user)?.status === expected, [user, expected]),
  );

// Whom all tabs of a user watch.
const all = (user) => `${user}-friend`;

// Tabs of one profile, each of which watches somebody of its own and one whom all watch.
async function tabs(user, count) {
  const context = await browser.newContext();
  const opened = [];
  for (let n = 0; n < count; n++) {
    const page = await open(context, pages.url, server, { user }, [
      `${user}-friend-${n}`,
      all(user),
    ]);
    opened.push(page);
    if (n === 0) await until("the first one leads", async () => (await server.status(user)).online);
  }
  for (const [n, page] of opened.entries()) await shows(page, `${user}-friend-${n}`, "offline");
  return { context, opened };
}

test("ten tabs hold one connection, and each is told what it watches", { skip }, async () => {
  const { context, opened } = await tabs("ten", 10);
  const watches = () => server.sum("greendot_watches");
  await until("eleven are watched", async () => (await watches()) === 11);
  assert.equal(await streams(), 1);
  await server.beat("ten-friend-7");
  await server.beat(all("ten"));
  for (const [n, page] of opened.entries()) {
    await shows(page, all("ten"), "online");
    const seen = new Set(await told(page));
    const own = n === 7 ? ["ten-friend-7 online"] : [];
    const shared = ["ten-friend offline", "ten-friend online"];
    assert.deepEqual(seen, new Set([`ten-friend-${n} offline`, ...own, ...shared]));
  }
  // What nobody watches any more is watched no more.
  await Promise.all(opened.slice(5).map((page) => page.close()));
  await until("five are gone", async () => (await server.sum("greendot_watches")) === 6);
  assert.equal(await streams(), 1);
  await context.close();
  await until("no stream is left", async () => (await streams()) === 0);
});

test("what a tab watched that has crashed is watched no more", { skip }, async () => {
  const { opened } = await tabs("crash", 3);
  const watches = () => server.sum("greendot_watches");
  await until("four are watched", async () => (await watches()) === 4);
  const crashed = opened[1].waitForEvent("crash");
  // It ends the process of the page, which says nothing to anybody. The call ends with it.
  opened[1].goto("chrome://crash").catch(() => {});
  await crashed;
  await until(
    "its friend is watched no more",
    async () => (await server.sum("greendot_watches")) === 3,
  );
  // The others go on, and so do those who come.
  await server.beat(all("crash"));
  for (const page of [opened[0], opened[2]]) await shows(page, all("crash"), "online");
  assert.equal(await streams(), 1);
  await shows(opened[2], "crash-friend-2", "offline");
});

test("one user, one group: two users of one browser have two streams", { skip }, async () => {
  const context = await browser.newContext();
  const one = await open(context, pages.url, server, { user: "two-a" }, ["two-b"]);
  const other = await open(context, pages.url, server, { user: "two-b" }, ["two-a"]);
  await shows(one, "two-b", "online");
  await shows(other, "two-a", "online");
  await until("there are two streams", async () => (await streams()) === 2);
});

// What the tabs are told, and a watcher elsewhere, while `end` ends the one that leads.
async function loses(user, end, after, during) {
  const { context, opened } = await tabs(user, 3);
  const elsewhere = await browser.newContext();
  const watcher = await open(elsewhere, pages.url, server, { user: `${user}-fan` }, [user]);
  await shows(watcher, user, "online");
  const { since } = await server.status(user);
  const [leader, ...rest] = opened;
  const before = (await told(rest[0])).length;
  await end(leader, context);
  // In the middle of it something happens.
  await server.beat(`${user}-friend-1`);
  await shows(rest[0], `${user}-friend-1`, "online");
  during?.();
  assert.deepEqual((await told(rest[0])).slice(before), [`${user}-friend-1 online`]);
  await pause(OFFLINE_AFTER_MS - 2000);
  assert.deepEqual((await told(watcher)).slice(-1), [`${user} online`]);
  assert.equal((await server.status(user)).since, since);
  await after?.(leader, rest);
}

test("the tab that leads is closed", { skip }, () =>
  loses("closed", (leader) => leader.close({ runBeforeUnload: false })),
);

test("the tab that leads goes elsewhere, and comes back", { skip }, () =>
  loses(
    "gone",
    (leader) => leader.goto("about:blank"),
    async (leader, rest) => {
      await leader.goBack();
      await pause(500);
      await until("there are two streams", async () => (await streams()) === 2);
      await shows(rest[1], all("gone"), "offline");
    },
  ),
);

test("the browser freezes the tab that leads", { skip }, () =>
  loses(
    "frozen",
    async (leader, context) => {
      const session = await context.newCDPSession(leader);
      await session.send("Page.setWebLifecycleState", { state: "frozen" });
      leader.thaw = () => session.send("Page.setWebLifecycleState", { state: "active" });
    },
    async (leader, rest) => {
      await leader.thaw();
      await server.beat("frozen-friend-0");
      await shows(leader, "frozen-friend-0", "online");
      await until("there are two streams", async () => (await streams()) === 2);
    },
  ),
);

test("the tab that leads falls silent, and is displaced", { skip }, () => {
  let isBusy = true;
  return loses(
    "silent",
    async (leader) => {
      // It does nothing else for so long.
      const busy = leader.evaluate(() => {
        for (const end = Date.now() + 12_000; Date.now() < end;);
      });
      leader.rested = busy.then(() => (isBusy = false));
    },
    async (leader) => {
      await leader.rested;
      await server.beat("silent-friend-0");
      await shows(leader, "silent-friend-0", "online");
      await until("its stream has ended", async () => (await streams()) === 2);
    },
    () => assert.ok(isBusy, "nobody took its place before it came back"),
  );
});

test("a log-out in one tab is one in all", { skip }, async () => {
  const { opened } = await tabs("leaver", 3);
  await opened[1].evaluate(() => gd.leave());
  await until("the user is offline", async () => !(await server.status("leaver")).online);
  await until("no stream is left", async () => (await streams()) === 0);
  await pause(1000);
  assert.equal(await streams(), 0);
  assert.equal((await server.status("leaver")).online, false);
});
