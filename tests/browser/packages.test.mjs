// What a web developer installs: sizes, the packed files in a TypeScript project, React in a page.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { block, bundle, launch, project, serve, site, skip, until } from "./harness.mjs";

let folder, server;

before(async () => {
  if (skip) return;
  folder = project();
  server = await serve();
});

after(async () => {
  await server?.close();
  if (folder) fs.rmSync(folder, { recursive: true, force: true });
});

const run = (program, args, options) =>
  execFileSync(program, args, { cwd: folder, encoding: "utf8", stdio: "pipe", ...options });

test("a package has its README and its licence, and all that it imports", { skip }, () => {
  const mit = fs.readFileSync(path.join(import.meta.dirname, "../../LICENSE-MIT"), "utf8");
  for (const name of ["client", "react"]) {
    const packed = `${folder}/node_modules/@greendot/${name}`;
    assert.ok(fs.readFileSync(`${packed}/LICENSE`, "utf8").endsWith(mit), name);
    assert.match(
      fs.readFileSync(`${packed}/README.md`, "utf8"),
      new RegExp(`^# @greendot/${name}\n`),
    );
  }
});

test("what the README of the client says runs, in Node and in a page", { skip }, async () => {
  const readme = fs.readFileSync(`${folder}/node_modules/@greendot/client/README.md`, "utf8");
  await showsBob((fresh) => {
    const ends = `const seen = new Set();
gd.on("state", ({ user, stale }) => !stale && seen.add(user).size === 2 && gd.leave());`;
    fs.writeFileSync(`${folder}/watch.js`, block(readme, "js", fresh) + ends);
    const said = run("node", ["watch.js"], { timeout: 20_000 }).trim().split("\n");
    assert.deepEqual(said.slice(0, 2).sort(), ["bob offline  null", "carol offline  null"]);
    fs.writeFileSync(`${folder}/dot.js`, block(readme, "js", fresh, 1));
    return bundle(folder, "dot.js");
  });
});

test("what the README of the hooks says runs", { skip }, async () => {
  const readme = fs.readFileSync(`${folder}/node_modules/@greendot/react/README.md`, "utf8");
  await showsBob((fresh) => {
    fs.writeFileSync(`${folder}/readme.jsx`, block(readme, "jsx", fresh));
    fs.writeFileSync(
      `${folder}/shown.jsx`,
      `import { createRoot } from "react-dom/client";
import { App } from "./readme.jsx";
createRoot(document.body).render(<App />);
`,
    );
    return bundle(folder, "shown.jsx");
  });
});

// A page with the script that `made` gives for a server has bob's dot, and it follows him.
async function showsBob(made) {
  const fresh = await serve();
  const script = made(fresh);
  const html = `<!doctype html><title>Bob</title><body><script type="module">${script}</script>`;
  const [pages, browser] = [await site({ "/": html }), await launch()];
  try {
    const page = await browser.newPage();
    await page.goto(pages.url);
    const dot = page.locator("green-dot[user=bob]");
    const shows = (status) =>
      until(`bob is ${status}`, async () => (await dot.getAttribute("status")) === status);
    await shows("offline");
    await fresh.beat("bob");
    await shows("online");
  } finally {
    await browser.close();
    pages.close();
    await fresh.close();
  }
}

test("what a page loads is small", { skip }, async () => {
  for (const [file, bytesMax] of [
    ["client.js", 8 * 1024],
    ["green-dot.js", 2 * 1024],
  ]) {
    const text = await (await fetch(`${server.url}/${file}`)).text();
    const bytes = gzipSync(text, { level: 9 }).length;
    assert.ok(bytes <= bytesMax, `${file}: ${bytes} bytes of ${bytesMax}`);
  }
});

test("the packed client in an empty TypeScript project", { skip }, async () => {
  fs.writeFileSync(
    `${folder}/main.ts`,
    `import { Greendot, type State } from "@greendot/client";
import type { GreenDot } from "@greendot/client/green-dot.js";
const gd = new Greendot({ url: process.argv[2], user: "node" });
const stop: () => void = gd.watch(["node", "bob"], ({ user, status, lastActive }: State) => {
  const at: number | null = lastActive;
  console.log(user, status, at === null);
  if (user === "node" && status === "busy") gd.leave();
});
gd.on("error", (error) => console.log(error.status, error.message));
gd.on("live", async (live: boolean) => {
  if (live) await gd.setStatus("busy");
});
let dot: GreenDot | undefined;
export { dot, stop };
`,
  );
  fs.writeFileSync(
    `${folder}/wrong.ts`,
    `import { Greendot } from "@greendot/client";
export function wrong(gd: Greendot) {
  // @ts-expect-error
  gd.setStatus("asleep");
  // @ts-expect-error
  gd.on("presence", () => {});
  // @ts-expect-error
  gd.get("bob").status;
}
`,
  );
  fs.writeFileSync(
    `${folder}/app.tsx`,
    `import { GreenDot, GreendotProvider, usePresence } from "@greendot/react";
const Friend = ({ user }: { user: string }) => (
  <p><GreenDot user={user}>{user}</GreenDot> {usePresence(user)?.status}</p>
);
export const App = () => (
  <GreendotProvider url="http://127.0.0.1:8080" user="alice" token={async () => "t"}>
    <Friend user="bob" />
  </GreendotProvider>
);
`,
  );
  const flags = [
    "--strict",
    "--target",
    "es2022",
    "--module",
    "nodenext",
    "--skipLibCheck",
    "false",
  ];
  const node = `${folder}/node_modules/@types/node`;
  fs.mkdirSync(node, { recursive: true });
  fs.writeFileSync(`${node}/index.d.ts`, "declare const process: { argv: string[] };\n");
  fs.writeFileSync(`${node}/package.json`, '{"name":"@types/node","version":"0.0.0"}');
  run("node", [
    "node_modules/typescript/bin/tsc",
    ...flags,
    ...["--lib", "es2022,dom", "--jsx", "react-jsx", "--types", "node"],
    ...["main.ts", "wrong.ts", "app.tsx"],
  ]);
  const said = run("node", ["main.js", server.url], { timeout: 20_000 });
  const lines = new Set(said.trim().split("\n"));
  assert.deepEqual(lines, new Set(["bob offline true", "node online false", "node busy false"]));
  assert.equal((await server.status("node")).status, "offline");
});

test("React in a page", { skip }, async () => {
  fs.writeFileSync(
    `${folder}/page.jsx`,
    `import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { GreenDot, GreendotProvider, useGreendot, usePresence } from "@greendot/react";
const Friend = ({ user }) => (
  <p id={user}><GreenDot user={user}>{user}</GreenDot> <b>{usePresence(user)?.status}</b></p>
);
const Busy = () => {
  const gd = useGreendot();
  return <button onClick={() => gd.setStatus("busy")}>busy</button>;
};
const App = () => {
  const [friend, setFriend] = useState("bob");
  return (
    <GreendotProvider url={location.hash.slice(1)} user="alice">
      <Friend user="alice" /><Friend user={friend} /><Busy />
      <button onClick={() => setFriend("carol")}>carol</button>
    </GreendotProvider>
  );
};
const root = createRoot(document.body);
window.unmount = () => root.unmount();
root.render(<StrictMode><App /></StrictMode>);
`,
  );
  const script = bundle(folder, "page.jsx");
  const html = `<!doctype html><title>React</title><script type="module">${script}</script>`;
  const pages = await site({ "/": html.replace("<script", "<body><script") });
  const browser = await launch();
  try {
    const page = await browser.newPage();
    const errors = [];
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(`${pages.url}/#${server.url}`);
    const shows = (user, status) =>
      until(`${user} is ${status}`, async () => {
        const text = await page.locator(`#${user} b`).textContent();
        const dot = await page.locator(`#${user} green-dot`).getAttribute("status");
        return text === status && dot === status;
      });
    await shows("alice", "online");
    await server.beat("bob");
    await shows("bob", "online");
    const label = await page.locator("#bob green-dot").getAttribute("aria-label");
    assert.equal(label, "bob: online");
    await until("it has a stream", async () => (await server.sum("greendot_streams")) === 1);
    await page.getByText("busy").first().click();
    await shows("alice", "busy");
    await page.getByRole("button", { name: "carol" }).click();
    await shows("carol", "offline");
    await until("bob is watched no more", async () => (await server.sum("greendot_watches")) === 2);
    await page.evaluate(() => unmount());
    await until("the stream has ended", async () => (await server.sum("greendot_streams")) === 0);
    assert.deepEqual(errors, []);
  } finally {
    await browser.close();
    pages.close();
  }
});
