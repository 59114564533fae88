// The client over TLS, in a real browser against the real server: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { certified, launch, open, serve, skip, until } from "./harness.mjs";

const FAST = ["--retry-ms=200", "--beat-interval-ms=1000", "--offline-after-ms=3000"];

let folders, server, stranger, browser;

before(async () => {
  if (skip) return;
  const folder = () => fs.mkdtempSync(path.join(os.tmpdir(), "greendot-tls-"));
  folders = [folder(), folder()];
  const [own, other] = folders.map(certified);
  server = await serve(...FAST, ...own.server);
  stranger = await serve(...FAST, ...other.server);
  browser = await launch(own.browser);
});

after(async () => {
  await browser?.close();
  await server?.close();
  await stranger?.close();
  folders?.forEach((folder) => fs.rmSync(folder, { recursive: true, force: true }));
});

const shows = (page, user, expected) =>
  until(`${user} is ${expected}`, () =>
    page.evaluate(([user, expected]) => gd.get(user)?.status === expected, [user, expected]),
  );

test("two pages see each other come, change and go", { skip }, async () => {
  const contexts = [await browser.newContext(), await browser.newContext()];
  const over = { url: server.https };
  const anna = await open(contexts[0], server.https, over, { user: "anna" }, ["ben"]);
  await shows(anna, "ben", "offline");
  const ben = await open(contexts[1], server.https, over, { user: "ben" }, ["anna"]);
  await shows(anna, "ben", "online");
  await shows(ben, "anna", "online");
  await ben.evaluate(() => gd.setStatus("busy"));
  await shows(anna, "ben", "busy");
  // Pages of TLS are secure: all tabs share one stream.
  assert.ok(await anna.evaluate(() => window.isSecureContext && "locks" in navigator));
  await ben.evaluate(() => gd.leave());
  await shows(anna, "ben", "offline");
  assert.deepEqual(await anna.evaluate(() => errors), []);
  assert.ok((await server.sum("greendot_tls_handshakes_total", 'kind="full"')) >= 2);
  assert.equal(await server.sum("greendot_tls_broken_total"), 0);
  for (const context of contexts) await context.close();
});

test("a stream that is lost comes back, and a restart tells nobody", { skip }, async () => {
  const context = await browser.newContext();
  const page = await open(context, server.https, { url: server.https }, { user: "carla" });
  await until("carla is online", async () => (await server.status("carla")).online);
  const { since } = await server.status("carla");
  await server.end("SIGKILL");
  await server.start();
  const back = () => server.sum("greendot_streams");
  await until("the stream is back", async () => (await back()) >= 1);
  assert.deepEqual((await server.status("carla")).since, since);
  await page.evaluate(() => gd.leave());
  await context.close();
});

test("another certificate is not believed", { skip }, async () => {
  const page = await browser.newPage();
  await assert.rejects(page.goto(stranger.https), /ERR_CERT_AUTHORITY_INVALID/);
  const refused = 'reason="alert"';
  await until("it was said", () => stranger.sum("greendot_tls_handshakes_failed_total", refused));
  await page.close();
});
