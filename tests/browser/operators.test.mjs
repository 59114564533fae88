// The dashboard of a node that asks for a key, in a real browser: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { PROGRAM, launch, pause, serve, skip, until } from "./harness.mjs";

let folder, server, browser, keys;

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
  server = await serve(
    "--admin=0.0.0.0:0",
    `--service-keys=${folder}/services`,
    `--jwt-keys=${folder}/app.secret`,
  );
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await server?.close();
  if (folder) fs.rmSync(folder, { recursive: true, force: true });
});

test("the dashboard asks for a key, says what a key lacks, and keeps none", { skip }, async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(server.admin);
  const shown = (id) => page.locator(`#${id}`).isVisible();
  const words = (id) => page.locator(`#${id}`).textContent();
  const submit = async (form, field, text) => {
    await page.locator(`#${form} [name=${field}]`).fill(text);
    await page.evaluate((form) => document.getElementById(form).requestSubmit(), form);
  };
  const signIn = (key) => submit("key", "key", key);
  const watch = (user) => submit("add", "users", user);

  await until("it asks", () => shown("signin"));
  assert.equal(await words("server"), "asks for a service key");
  assert.equal(await shown("now"), false);

  await signIn(`${keys.all}x`);
  await until("it says so", async () => (await words("refusal")) !== "");
  assert.equal(await words("refusal"), "This key is not known here.");
  // What is said stays, however often the numbers are asked for.
  await pause(2_500);
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
  await until("users are shown", async () => /never seen.*never seen/.test(await words("watched")));

  // No script has seen a key or a session.
  const kept = await page.evaluate(() => document.cookie + JSON.stringify({ ...localStorage }));
  assert.equal(kept, '{"greendot-service":"ops"}');
  const again = await context.newPage();
  await again.goto(server.admin);
  const said = again.locator("#server");
  await until("a second page is signed in", async () => /serving$/.test(await said.textContent()));

  await page.locator("#leave").click();
  await until("it asks again", async () => (await shown("signin")) && !(await shown("now")));
  assert.equal(await shown("who"), false);
});
