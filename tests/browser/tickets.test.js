// client.js with tokens, in a real browser against the real server: `node --test tests/browser/`.
// GREENDOT names the server's program. Skipped where there is no Chromium.
"use strict";

const { test, before, after } = require("node:test");
const assert = require("node:assert/strict");
const { createHmac } = require("node:crypto");
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { Chromium, find } = require("./chromium.js");

const PROGRAM = process.env.GREENDOT ?? path.join(__dirname, "../../target/debug/greendot");
const SECRET = "0123456789abcdef0123456789abcdef";
// Longest wait for what must come.
const PATIENCE_MS = 20_000;

const chromium = find();
const skip = chromium === null && "there is no Chromium";

let folder, server, port, browser;

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

const status = async (user) => {
  const headers = { Authorization: `Bearer ${token(60)}` };
  const answer = await fetch(`http://127.0.0.1:${port}/v1/presence/${user}`, { headers });
  return (await answer.json()).status;
};

async function until(what, look) {
  const end = Date.now() + PATIENCE_MS;
  while (!(await look())) {
    assert.ok(Date.now() < end, `waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

before(async () => {
  if (skip) return;
  folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-tickets-"));
  fs.writeFileSync(`${folder}/app.secret`, SECRET, { mode: 0o600 });
  server = spawn(PROGRAM, [
    "serve",
    "--http=127.0.0.1:0",
    "--udp=127.0.0.1:0",
    `--data-dir=${folder}/data`,
    "--memory=off",
    "--shards=2",
    `--jwt-keys=${folder}/app.secret`,
    "--beat-interval-ms=500",
    "--offline-after-ms=1500",
    "--retry-ms=100",
    "--stream-life-ms=4000",
  ]);
  port = await new Promise((done, fail) => {
    server.once("exit", (code) => fail(new Error(`the server ended with ${code}`)));
    server.stdout.on("data", (text) => {
      const found = /http=127\.0\.0\.1:(\d+)/.exec(text);
      if (found) done(Number(found[1]));
    });
  });
  browser = new Chromium(chromium);
});

after(async () => {
  await browser?.close().catch(() => {});
  if (!server) return;
  const ended = new Promise((done) => server.once("exit", done));
  server.kill("SIGKILL");
  await ended;
  fs.rmSync(folder, { recursive: true, force: true });
});

// Over several lives of its stream, each with a ticket of its own.
test("a page with a token is online, watches and edits", { skip }, async () => {
  const page = await browser.open(`http://127.0.0.1:${port}/`);
  await until("the page has loaded", () =>
    page.evaluate("document.readyState === 'complete' && typeof Greendot === 'function'"),
  );
  await page.evaluate(`
    window.told = [];
    window.client = new Greendot("", {
      user: "me",
      watch: ["bob"],
      token: async () => ${JSON.stringify(token(60))},
    });
    for (const kind of ["open", "error"])
      client.on(kind, (said) => told.push([kind, said.status, said.detail]));
    client.watch("carol");
    undefined`);
  await until("alice is online", async () => (await status("alice")) === "online");
  await until("carol is known", () => page.evaluate("client.get('carol')?.status === 'offline'"));
  const opened = () => page.evaluate("told.filter(([kind]) => kind === 'open').length");
  while ((await opened()) < 4) {
    assert.equal(await status("alice"), "online");
    await new Promise((done) => setTimeout(done, 100));
  }
  await page.evaluate("client.unwatch('carol'); client.watch('carol')");
  const errors = await page.evaluate("told.filter(([kind]) => kind === 'error')");
  assert.deepEqual(errors, []);
  await page.evaluate("client.close()");
});

// The same URL again is answered 204, after which a browser does not come back.
test("a bare EventSource has one stream by a ticket", { skip }, async () => {
  const headers = { Authorization: `Bearer ${token(60)}` };
  const asked = await fetch(`http://127.0.0.1:${port}/v1/ticket`, { method: "POST", headers });
  const { ticket } = await asked.json();
  const page = await browser.open(`http://127.0.0.1:${port}/client.js`);
  await page.evaluate(`
    window.kinds = [];
    window.source = new EventSource("/v1/stream?watch=bob&ticket=${ticket}");
    for (const kind of ["hello", "goodbye"]) source.addEventListener(kind, () => kinds.push(kind));
    undefined`);
  await until("it is told to stay away", () => page.evaluate("source.readyState === 2"));
  assert.deepEqual(await page.evaluate("kinds"), ["hello", "goodbye"]);
});
