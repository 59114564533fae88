// What pages of other origins can have a real browser do, and what they are told when they can not:
// `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { begin, launch, open, serve, site, skip, until } from "./harness.mjs";

let server, browser, pages, listed;

before(async () => {
  if (skip) return;
  [browser, pages, listed] = [await launch(), await site(), await site()];
  // One origin is listed, so the others of this machine are not.
  server = await serve(`--cors-origins=${listed.url}`);
});

after(async () => {
  await browser?.close();
  pages?.close();
  listed?.close();
  await server?.close();
});

// Everything that a page can have sent without being let. Each settles, one way or another.
async function attack(at) {
  const source = new EventSource(`${at}/v1/stream?user=source`);
  await new Promise((done) => (source.onopen = source.onerror = done));
  await new Promise((done) => {
    const image = new Image();
    image.onload = image.onerror = done;
    image.src = `${at}/v1/stream?user=image`;
  });
  const quiet = (target, options) => fetch(at + target, { mode: "no-cors", ...options });
  await quiet("/v1/stream?user=fetched").catch(() => {});
  const body = JSON.stringify({ users: ["beaten"] });
  await quiet("/v1/beat", { method: "POST", body }).catch(() => {});
  const headers = { "Content-Type": "application/json" };
  await fetch(`${at}/v1/beat`, { method: "POST", headers, body }).catch(() => {});
}

test("a page of another origin puts nobody online", { skip }, async () => {
  const page = await browser.newPage();
  // Another name and another port: another site to the browser.
  await page.goto(pages.url);
  await page.evaluate(attack, server.url);
  assert.equal(await server.sum("greendot_users"), 0);
  // Greendot's own page may.
  await page.goto(server.url);
  await page.evaluate(async () => {
    const source = new EventSource("/v1/stream?user=source");
    await new Promise((done, fail) => ((source.onopen = done), (source.onerror = fail)));
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ users: ["beaten"] });
    const answer = await fetch("/v1/beat", { method: "POST", headers, body });
    if (!answer.ok) throw new Error(String(answer.status));
  });
  assert.equal(await server.sum("greendot_users"), 2);
  await page.close();
});

const errors = (page) => page.evaluate(() => errors);

test("a page that is not listed is told how to list it", { skip }, async () => {
  const page = await open(browser, pages.url, server, { user: "stranger" }, ["bob"]);
  await until("it is told", async () => (await errors(page)).length > 0);
  assert.deepEqual(await errors(page), [`this origin is not listed: --cors-origins ${pages.url}`]);
  await page.close();
});

test("a page that is listed watches, edits, beats and leaves", { skip }, async () => {
  const context = await browser.newContext();
  const page = await open(context, listed.url, server, { user: "guest" }, ["bob"]);
  await until("it is online", async () => (await server.status("guest")).online);
  await page.evaluate(() => gd.watch("carol"));
  await until("carol is known", () => page.evaluate(() => gd.get("carol")?.status === "offline"));
  await page.evaluate(() => gd.setStatus("busy"));
  assert.equal((await server.status("guest")).status, "busy");
  assert.deepEqual(await errors(page), []);
  // The page goes, and its profile stays: with that all that is under way would end.
  await page.close();
  await until("it has said goodbye", async () => !(await server.status("guest")).online);
  await context.close();
});

test("a page from a file is told to be served", { skip }, async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-file-"));
  fs.writeFileSync(`${folder}/page.html`, "<!doctype html><title>a file</title>");
  const page = await browser.newPage();
  await page.goto(`file://${folder}/page.html`);
  await begin(page, server, { user: "file" }, []);
  await until("it is told", async () => (await errors(page)).length > 0);
  assert.deepEqual(await errors(page), ["a page from a file has no origin: serve it over HTTP"]);
  await page.close();
  fs.rmSync(folder, { recursive: true });
});

test("a server that is not there is said to be so", { skip }, async () => {
  const gone = await serve();
  const page = await browser.newPage();
  await page.goto(pages.url);
  // The client comes from another server than the one that it is to ask.
  await page.evaluate(async (url) => {
    window.Greendot = (await import(`${url}/client.js`)).Greendot;
  }, server.url);
  await gone.close();
  await page.evaluate((url) => {
    window.errors = [];
    window.gd = new Greendot({ url });
    gd.on("error", ({ message }) => errors.push(message));
  }, gone.url);
  await until("it is told", async () => (await errors(page)).length > 0);
  assert.deepEqual(await errors(page), [`no answer from ${gone.url}: does greendot run there?`]);
  await page.close();
});
