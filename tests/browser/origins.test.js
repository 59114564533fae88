// What a page of another origin can not have a real browser do: `node --test tests/browser/`.
// GREENDOT names the server's program. Skipped where there is no Chromium.
"use strict";

const { test, before, after } = require("node:test");
const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const http = require("node:http");
const os = require("node:os");
const path = require("node:path");
const { Chromium, find } = require("./chromium.js");

const PROGRAM = process.env.GREENDOT ?? path.join(__dirname, "../../target/debug/greendot");
const chromium = find();
const skip = chromium === null && "there is no Chromium";

let folder, server, port, browser, pages;

before(async () => {
  if (skip) return;
  folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-origins-"));
  // One origin is listed, so those of this machine are not.
  server = spawn(PROGRAM, [
    "serve",
    "--http=127.0.0.1:0",
    "--udp=127.0.0.1:0",
    `--data-dir=${folder}/data`,
    "--memory=off",
    "--shards=1",
    "--cors-origins=https://app.example",
  ]);
  port = await new Promise((done, fail) => {
    server.once("exit", (code) => fail(new Error(`the server ended with ${code}`)));
    server.stdout.on("data", (text) => {
      const found = /http=127\.0\.0\.1:(\d+)/.exec(text);
      if (found) done(Number(found[1]));
    });
  });
  pages = http.createServer((_, answer) => {
    answer.setHeader("Content-Type", "text/html");
    answer.end("<!doctype html><title>elsewhere</title>");
  });
  await new Promise((done) => pages.listen(0, "127.0.0.1", done));
  browser = new Chromium(chromium);
});

after(async () => {
  // What the browser leaves in its folder is not what this is about.
  await browser?.close().catch(() => {});
  pages?.close();
  if (!server) return;
  const ended = new Promise((done) => server.once("exit", done));
  server.kill("SIGKILL");
  await ended;
  fs.rmSync(folder, { recursive: true, force: true });
});

// Everything that a page can have sent without being let. Each settles, one way or another.
const attack = (port) => `(async () => {
  const at = "http://127.0.0.1:${port}";
  const source = new EventSource(at + "/v1/stream?user=source");
  await new Promise((done) => (source.onopen = source.onerror = done));
  await new Promise((done) => {
    const image = new Image();
    image.onload = image.onerror = done;
    image.src = at + "/v1/stream?user=image";
  });
  const quiet = (target, options) => fetch(at + target, { mode: "no-cors", ...options });
  await quiet("/v1/stream?user=fetched").catch(() => {});
  const body = JSON.stringify({ users: ["beaten"] });
  await quiet("/v1/beat", { method: "POST", body }).catch(() => {});
  const headers = { "Content-Type": "application/json" };
  await fetch(at + "/v1/beat", { method: "POST", headers, body }).catch(() => {});
})()`;

// A page that has loaded, in the place of the empty one that a target begins with.
async function open(url) {
  const page = await browser.open(url);
  const loaded = `location.href === ${JSON.stringify(url)} && document.readyState === "complete"`;
  for (let n = 0; n < 400; n++) {
    if (await page.evaluate(loaded).catch(() => false)) return page;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`${url} does not load`);
}

const known = async () => {
  const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
  return Number(/^greendot_users (\d+)/m.exec(await answer.text())[1]);
};

test("a page of another origin puts nobody online", { skip }, async () => {
  // Another name and another port: another site to the browser.
  const page = await open(`http://localhost:${pages.address().port}/`);
  await page.evaluate(attack(port));
  assert.equal(await known(), 0);
  // Greendot's own page may.
  const own = await open(`http://127.0.0.1:${port}/`);
  await own.evaluate(`(async () => {
    const source = new EventSource("/v1/stream?user=source");
    await new Promise((done, fail) => ((source.onopen = done), (source.onerror = fail)));
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ users: ["beaten"] });
    const answer = await fetch("/v1/beat", { method: "POST", headers, body });
    if (!answer.ok) throw new Error(String(answer.status));
  })()`);
  assert.equal(await known(), 2);
});
