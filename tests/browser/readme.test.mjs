// What README.md tells to paste, pasted: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { block as blockOf, bundle, launch, project, serve, site, skip, until } from "./harness.mjs";

const README = fs.readFileSync(path.join(import.meta.dirname, "../../README.md"), "utf8");

let server, browser, folder;

before(async () => {
  if (skip) return;
  [server, browser, folder] = [await serve(), await launch(), project()];
});

after(async () => {
  await browser?.close();
  await server?.close();
  if (folder) fs.rmSync(folder, { recursive: true, force: true });
});

const block = (language, n) => blockOf(README, language, server, n);

const dot = (page) => page.locator("green-dot").getAttribute("status");

async function showsAFriend(page) {
  await until("bob is offline", async () => (await dot(page)) === "offline");
  await until("alice is online", async () => (await server.status("alice")).online);
  await server.beat("bob");
  await until("bob is online", async () => (await dot(page)) === "online");
}

test("ten lines of HTML show a friend's dot", { skip }, async () => {
  const html = block("html");
  assert.ok(html.trim().split("\n").length <= 10);
  const pages = await site({ "/friend.html": html });
  const page = await browser.newPage();
  await page.goto(`${pages.url}/friend.html`);
  await showsAFriend(page);
  await page.close();
  pages.close();
});

test("so do eight of React", { skip }, async () => {
  await fetch(`${server.url}/v1/leave`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ users: ["bob"] }),
  });
  const source = block("jsx");
  assert.ok(source.trim().split("\n").length <= 8);
  fs.writeFileSync(`${folder}/app.jsx`, source);
  fs.writeFileSync(
    `${folder}/main.jsx`,
    `import { createRoot } from "react-dom/client";
import { App } from "./app.jsx";
createRoot(document.body).render(<App />);
`,
  );
  const script = bundle(folder, "main.jsx");
  const html = `<!doctype html><title>React</title><body><script type="module">${script}</script>`;
  const pages = await site({ "/": html });
  const page = await browser.newPage();
  await page.goto(pages.url);
  await showsAFriend(page);
  await page.close();
  pages.close();
});

test("without a component", { skip }, async () => {
  const pages = await site();
  const page = await browser.newPage();
  const said = [];
  page.on("console", (message) => said.push(message.text()));
  await page.goto(pages.url);
  const code = block("js").replace(
    "await gd.leave()",
    "await new Promise((go) => (window.go = go)); $&",
  );
  const script = `${code}; window.left = true;`;
  await page.addScriptTag({ type: "module", content: script });
  await until("alice is away", async () => (await server.status("alice")).status === "away");
  await until("carol is told of", () => said.some((text) => /^carol offline {2}null/.test(text)));
  await page.evaluate(() => go());
  await until("alice is offline", async () => !(await server.status("alice")).online);
  await until("it is done", () => page.evaluate(() => window.left));
  await page.close();
  pages.close();
});

test("a backend's token lets alice in, and to bob", { skip }, async () => {
  const secret = `${folder}/app.secret`;
  fs.writeFileSync(secret, "f".repeat(64), { mode: 0o600 });
  const asking = await serve(`--jwt-keys=${secret}`);
  for (const [program, file, source] of [
    ["node", "token.cjs", block("js", 1)],
    ["python3", "token.py", block("python")],
  ]) {
    assert.ok(source.trim().split("\n").length <= 10, program);
    fs.writeFileSync(`${folder}/${file}`, source);
    const token = execFileSync(program, [file], { cwd: folder, encoding: "utf8" }).trim();
    const headers = { Authorization: `Bearer ${token}` };
    assert.equal((await asking.status("bob", headers)).status, "offline");
    assert.equal((await asking.status("mallory", headers)).status, 403);
  }
  await asking.close();
});
