// The dashboard of a node that asks for a key, in a real browser: `node --test tests/browser/`.
// GREENDOT names the server's program. Skipped where there is no Chromium.
"use strict";

const { test, before, after } = require("node:test");
const assert = require("node:assert/strict");
const { execFileSync, spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { Chromium, find } = require("./chromium.js");

const PROGRAM = process.env.GREENDOT ?? path.join(__dirname, "../../target/debug/greendot");
const PATIENCE_MS = 20_000;
const chromium = find();
const skip = chromium === null && "there is no Chromium";

let folder, server, admin, browser, keys;

// A service's key; its line goes into the file.
function made(name, scopes) {
  const args = ["key", "new", "--service", name, "--scopes", scopes];
  const [key, line] = execFileSync(PROGRAM, args, { encoding: "utf8" }).split("\n");
  fs.appendFileSync(path.join(folder, "services"), `${line}\n`);
  return key;
}

before(async () => {
  if (skip) return;
  folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-operators-"));
  keys = { numbers: made("scraper", "metrics"), all: made("ops", "metrics,admin") };
  fs.writeFileSync(path.join(folder, "app.secret"), "of-32-bytes-or-more-for-a-test-only", {
    mode: 0o600,
  });
  // Other machines may reach it, so each call takes its scope.
  server = spawn(PROGRAM, [
    "serve",
    "--http=127.0.0.1:0",
    "--udp=127.0.0.1:0",
    "--admin=0.0.0.0:0",
    `--service-keys=${folder}/services`,
    `--jwt-keys=${folder}/app.secret`,
    `--data-dir=${folder}/data`,
    "--memory=off",
    "--shards=1",
  ]);
  admin = await new Promise((done, fail) => {
    server.once("exit", (code) => fail(new Error(`the server ended with ${code}`)));
    server.stdout.on("data", (text) => {
      const found = /admin=0\.0\.0\.0:(\d+)/.exec(text);
      if (found) done(`http://127.0.0.1:${found[1]}`);
    });
  });
  browser = new Chromium(chromium);
});

after(async () => {
  // What the browser leaves in its folder is not what this is about.
  await browser?.close().catch(() => {});
  if (!server) return;
  const ended = new Promise((done) => server.once("exit", done));
  server.kill("SIGKILL");
  await ended;
  fs.rmSync(folder, { recursive: true, force: true });
});

test("the dashboard asks for a key, says what a key lacks, and keeps none", { skip }, async () => {
  const page = await browser.open(`${admin}/`);
  const shown = (id) =>
    page.evaluate(`(document.getElementById(${JSON.stringify(id)})?.checkVisibility() ?? false)`);
  const words = (id) => page.evaluate(`document.getElementById(${JSON.stringify(id)}).textContent`);
  const until = async (what, look) => {
    const end = Date.now() + PATIENCE_MS;
    while (!(await look())) {
      const body = Date.now() < end || (await page.evaluate("document.body.innerText"));
      assert.ok(Date.now() < end, `waited in vain: ${what}: ${body}`);
      await new Promise((done) => setTimeout(done, 50));
    }
  };
  const signIn = (key) =>
    page.evaluate(`(() => {
      const form = document.getElementById("key");
      form.elements.key.value = ${JSON.stringify(key)};
      form.requestSubmit();
    })()`);
  const watch = (user) =>
    page.evaluate(`(() => {
      const form = document.getElementById("add");
      form.elements.users.value = ${JSON.stringify(user)};
      form.requestSubmit();
    })()`);

  await until("it asks", () => shown("signin"));
  assert.equal(await words("server"), "asks for a service key");
  assert.equal(await shown("now"), false);

  await signIn(`${keys.all}x`);
  await until("it says so", async () => (await words("refusal")) !== "");
  assert.equal(await words("refusal"), "This key is not known here.");
  // What is said stays, however often the numbers are asked for.
  await new Promise((done) => setTimeout(done, 2_500));
  assert.equal(await words("refusal"), "This key is not known here.");

  await signIn(keys.numbers);
  await until("numbers are shown", async () => /serving$/.test(await words("server")));
  assert.deepEqual([await shown("signin"), await shown("now")], [false, true]);
  assert.equal(await words("service"), "signed in as scraper");
  await watch("bob");
  await until("it asks for another", () => shown("signin"));
  assert.match(await words("refusal"), /\bscope admin\b/);

  await signIn(keys.all);
  await until("it is signed in", async () => (await words("service")) === "signed in as ops");
  await until("it has closed the form", async () => !(await shown("signin")));
  await watch("carol");
  await until("users are shown", async () => /never seen/.test(await words("watched")));

  // No script has seen a key or a session.
  const kept = await page.evaluate("document.cookie + JSON.stringify({ ...localStorage })");
  assert.equal(kept, '{"greendot-service":"ops"}');
  const again = await browser.open(`${admin}/`);
  const serving = "/serving$/.test(document.getElementById('server')?.textContent)";
  await until("a second page is signed in", () => again.evaluate(serving));

  await page.evaluate("document.getElementById('leave').click()");
  await until("it asks again", async () => (await shown("signin")) && !(await shown("now")));
  assert.equal(await shown("who"), false);
});
