// The client with tokens, in a real browser against the real server: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { launch, pause, serve, skip, until } from "./harness.mjs";

const SECRET = "0123456789abcdef0123456789abcdef";

let folder, server, browser;

// A token of alice that is good for so long.
function token(seconds) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = {
    sub: "alice",
    exp: Math.floor(Date.now() / 1000) + seconds,
    greendot: { watch: ["bob", "carol"] },
  };
  const message = `${part({ alg: "HS256" })}.${part(claims)}`;
  return `${message}.${createHmac("sha256", SECRET).update(message).digest("base64url")}`;
}

const bearer = () => ({ Authorization: `Bearer ${token(60)}` });
const status = async (user) => (await server.status(user, bearer())).status;

before(async () => {
  if (skip) return;
  folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-tickets-"));
  fs.writeFileSync(`${folder}/app.secret`, SECRET, { mode: 0o600 });
  server = await serve(
    `--jwt-keys=${folder}/app.secret`,
    "--beat-interval-ms=500",
    // Longer than a busy machine takes to get a ticket and a stream for it.
    "--offline-after-ms=5000",
    "--retry-ms=100",
    "--stream-life-ms=4000",
  );
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await server?.close();
  if (folder) fs.rmSync(folder, { recursive: true, force: true });
});

// Opens a page of the server's own, in which alice is online by a token.
async function open(token) {
  const page = await browser.newPage();
  await page.goto(server.url);
  await page.evaluate(async (token) => {
    const { Greendot } = await import("/client.js");
    window.told = [];
    window.gd = new Greendot({ user: "me", token: async () => token });
    gd.on("live", (live) => told.push(live));
    gd.on("error", ({ status, message, users }) => told.push([status, message, users]));
  }, token);
  return page;
}

// Over several lives of its stream, each with a ticket of its own.
test("a page with a token is online, watches and edits", { skip }, async () => {
  const page = await open(token(60));
  await page.evaluate(() => void gd.watch(["bob", "carol"]));
  await until("alice is online", async () => (await status("alice")) === "online");
  await until("carol is known", () => page.evaluate(() => gd.get("carol")?.status === "offline"));
  const opened = () => server.sum("greendot_requests_total", 'call="stream"');
  for (const begun = await opened(); (await opened()) < begun + 3; await pause(100))
    assert.equal(await status("alice"), "online");
  await page.evaluate(() => gd.setStatus("away"));
  assert.equal(await status("alice"), "away");
  await page.evaluate(() => gd.setStatus("online"));
  assert.deepEqual(await page.evaluate(() => told), [true]);
  // Whom the token does not let watch is named, and the others are watched on.
  await page.evaluate(() => void gd.watch(["mallory"]));
  await until("it is refused", () => page.evaluate(() => told.length > 1));
  const [, [code, , users]] = await page.evaluate(() => told);
  assert.deepEqual([code, users], [403, ["mallory"]]);
  // It goes, and says so.
  await page.close();
  await until("alice is offline", async () => (await status("alice")) === "offline");
});

test("a page whose token is refused is told why", { skip }, async () => {
  const page = await open(token(-60));
  await until("it is told", () => page.evaluate(() => told.length > 0));
  const [[code, message]] = await page.evaluate(() => told);
  assert.equal(code, 401);
  assert.match(message, /^expired/);
  await page.close();
});

// The same URL again is answered 204, after which a browser does not come back.
test("a bare EventSource has one stream by a ticket", { skip }, async () => {
  const asked = await fetch(`${server.url}/v1/ticket`, { method: "POST", headers: bearer() });
  const { ticket } = await asked.json();
  const page = await browser.newPage();
  await page.goto(`${server.url}/client.js`);
  await page.evaluate((ticket) => {
    window.kinds = [];
    window.source = new EventSource(`/v1/stream?watch=bob&ticket=${ticket}`);
    for (const kind of ["hello", "goodbye"]) source.addEventListener(kind, () => kinds.push(kind));
  }, ticket);
  await until("it is told to stay away", () => page.evaluate(() => source.readyState === 2));
  assert.deepEqual(await page.evaluate(() => kinds), ["hello", "goodbye"]);
  await page.close();
});
