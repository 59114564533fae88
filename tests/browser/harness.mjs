// What the tests in a browser share: the real server, a server of pages, Debian's Chromium driven
// by playwright-core, and waiting. GREENDOT names the server's program.

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { createHash, X509Certificate } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import net from "node:net";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";

const ROOT = path.join(import.meta.dirname, "../..");
export const PROGRAM = process.env.GREENDOT ?? path.join(ROOT, "target/debug/greendot");
// Longest wait for what must come.
const PATIENCE_MS = 20_000;
const WEB = path.join(ROOT, "src/web");
const PACKAGES = path.join(process.env.CARGO_TARGET_DIR ?? `${ROOT}/target`, "browser");

const HTTPS = "--https=127.0.0.1:0";

const FLAGS = [
  // The throttling of a page that has been hidden for long begins after seconds, not minutes.
  "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/1",
];

// By which playwright keeps pages in the background from being throttled.
const UNTHROTTLED = [
  "--disable-background-timer-throttling",
  "--disable-backgrounding-occluded-windows",
  "--disable-renderer-backgrounding",
];

const isThere = (file) => spawnSync(file, ["--version"]).status === 0;
const chromium = ["chromium", "chromium-browser", "google-chrome"].find(isThere);
const isInstalled = fs.existsSync(`${PACKAGES}/installed`);
// Why the tests can not run, if they can not.
export const skip =
  (!chromium && "there is no Chromium") || (!isInstalled && "run tests/browser/install");

// The program that judges how accessible a page is, as text.
export const axe = () =>
  fs.readFileSync(createRequire(`${PACKAGES}/`).resolve("axe-core/axe.min.js"), "utf8");

// A certificate for this machine in `folder`: flags of a server that shows it, and one of a browser
// that believes its key and no other.
export function certified(folder) {
  const [cert, key] = [`${folder}/tls.crt`, `${folder}/tls.key`];
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  const names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
  const files = ["-days", "30", "-out", cert, "-keyout", key];
  execFileSync("openssl", ["req", "-x509", ...curve, ...names, ...files], { stdio: "pipe" });
  const { publicKey } = new X509Certificate(fs.readFileSync(cert));
  const spki = publicKey.export({ type: "spki", format: "der" });
  const hash = createHash("sha256").update(spki).digest("base64");
  return {
    server: [HTTPS, `--tls-cert=${cert}`, `--tls-key=${key}`],
    browser: `--ignore-certificate-errors-spki-list=${hash}`,
  };
}

export async function launch(...flags) {
  const { chromium: driver } = createRequire(`${PACKAGES}/`)("playwright-core");
  const executablePath = spawnSync("which", [chromium]).stdout.toString().trim();
  const args = [...FLAGS, ...flags];
  const options = { executablePath, args, ignoreDefaultArgs: UNTHROTTLED };
  const browser = await driver.launch(options);
  if (process.env.WEB_FILES === "source") fromSource(browser);
  return browser;
}

// A browser whose pages are as its visitors have them: playwright has each page of its own look as
// if it were in front. Its pages are those of `contexts()[0]`.
export async function launchBare() {
  const { chromium: driver } = createRequire(`${PACKAGES}/`)("playwright-core");
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-browser-"));
  const flags = ["--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0"];
  const program = spawn(chromium, [...FLAGS, ...flags, `--user-data-dir=${folder}`], {
    // A group of its own, so that all its processes can be ended.
    detached: true,
  });
  const endpoint = await new Promise((done, fail) => {
    program.once("exit", (code) => fail(new Error(`the browser ended with ${code}`)));
    program.stderr.on("data", (text) => {
      const found = /listening on (ws:\S+)/.exec(text);
      if (found) done(found[1]);
    });
  });
  const browser = await driver.connectOverCDP(endpoint, { noDefaults: true });
  const close = async () => {
    const ended = new Promise((done) => program.once("exit", done));
    process.kill(-program.pid, "SIGKILL");
    await ended;
    fs.rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  };
  return { context: browser.contexts()[0], close };
}

// Pages get the client as it is in the sources, so that no edit needs another server.
function fromSource(browser) {
  const newContext = browser.newContext.bind(browser);
  browser.newContext = async (options) => {
    const context = await newContext(options);
    await context.route(/:\d+\/[\w-]+\.js$/, (route) => {
      const name = path.basename(new URL(route.request().url()).pathname);
      const headers = { "Access-Control-Allow-Origin": "*" };
      return route.fulfill({ path: `${WEB}/client/${name}`, headers });
    });
    return context;
  };
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export async function until(what, look) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < end, `waited in vain: ${what}`);
    await pause(50);
  }
}

// A port that is nobody's, now and while a server is down that is started again: the kernel gives
// others higher ones by itself.
async function ownPort() {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 22_768);
    const isFree = await new Promise((done) => {
      const probe = net.createServer();
      probe.once("error", () => done(false));
      probe.listen(port, "127.0.0.1", () => probe.close(() => done(true)));
    });
    if (isFree) return port;
  }
}

// A server of its own folder and ports, and what it says.
export async function serve(...flags) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-server-"));
  let server, admin, https;
  const [port, ownHttps] = [await ownPort(), await ownPort()];
  const start = async () => {
    server = spawn(PROGRAM, [
      "serve",
      `--http=127.0.0.1:${port}`,
      "--udp=127.0.0.1:0",
      `--data-dir=${folder}/data`,
      "--memory=off",
      "--shards=2",
      "--sweep-interval-ms=50",
      ...flags.map((flag) => (flag === HTTPS ? flag.replace(":0", `:${ownHttps}`) : flag)),
    ]);
    let said = "";
    server.stderr.on("data", (text) => (said += text));
    await new Promise((done, fail) => {
      server.once("exit", (code) => fail(new Error(`the server ended with ${code}: ${said}`)));
      server.stdout.on("data", (text) => {
        admin = /admin=0\.0\.0\.0:(\d+)/.exec(text)?.[1];
        https = /https=127\.0\.0\.1:(\d+)/.exec(text)?.[1];
        if (/^listening /m.test(text)) done();
      });
    });
  };
  const end = async (signal) => {
    const ended = new Promise((done) => server.once("exit", done));
    server.kill(signal);
    await ended;
  };
  await start();
  const url = `http://127.0.0.1:${port}`;
  const metrics = async () => (await fetch(`${url}/metrics`)).text();
  return {
    url,
    admin: `http://127.0.0.1:${admin}`,
    https: `https://localhost:${https}`,
    port,
    end,
    start,
    async close() {
      if (server.exitCode === null && server.signalCode === null) await end("SIGKILL");
      fs.rmSync(folder, { recursive: true, force: true });
    },
    async status(user, headers = {}) {
      const answer = await fetch(`${url}/v1/presence/${encodeURIComponent(user)}`, { headers });
      return answer.json();
    },
    beat(user) {
      return fetch(`${url}/v1/beat`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ users: [user] }),
      });
    },
    // The sum of a metric over shards, and over all labels but those that are given.
    async sum(name, labels = "") {
      const series = (await metrics()).matchAll(
        new RegExp(`^${name}(?:{.*${labels}.*})? (\\S+)$`, "gm"),
      );
      return [...series].reduce((sum, [, value]) => sum + Number(value), 0);
    },
  };
}

// A server of pages, of another origin than the presence server's. `pages` gives each path its
// HTML; every other path is an empty page.
export async function site(pages = {}, headers = {}) {
  const server = http.createServer((request, answer) => {
    const { pathname } = new URL(request.url, "http://a");
    answer.writeHead(200, { "Content-Type": "text/html; charset=utf-8", ...headers });
    answer.end(pages[pathname] ?? "<!doctype html><title>a page</title>");
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `http://localhost:${server.address().port}`, close };
}

// A page with a client, `gd`, that has told in `told` what it was told.
export async function open(context, url, server, options = {}, watch = []) {
  const page = await context.newPage();
  await page.goto(url);
  await begin(page, server, options, watch);
  return page;
}

export async function begin(page, server, options, watch) {
  const passed = { url: server.url, ...options };
  await page.evaluate(
    async ([options, watch]) => {
      const { Greendot } = await import(`${options.url}/client.js`);
      window.told = [];
      window.errors = [];
      window.gd = new Greendot(options);
      gd.on("state", ({ user, status, stale }) =>
        told.push(`${user} ${status}${stale ? "?" : ""}`),
      );
      gd.on("error", ({ message }) => errors.push(message));
      gd.watch(watch);
    },
    [passed, watch],
  );
}

// The processes that run pages.
export function renderers() {
  const children = new Map();
  for (const pid of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8");
      const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
      children.set(parent, [...(children.get(parent) ?? []), Number(pid)]);
    } catch {
      // It has just ended.
    }
  }
  const found = [];
  const walk = (pid) => {
    for (const child of children.get(pid) ?? []) {
      const command = fs.readFileSync(`/proc/${child}/cmdline`, "utf8");
      if (command.includes("--type=renderer")) found.push(child);
      walk(child);
    }
  };
  walk(process.pid);
  return found;
}

// A folder with the packages of the client as npm would install them from where they are packed,
// and what the tests have already.
export function project() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-project-"));
  const run = (program, args) => execFileSync(program, args, { cwd: folder, encoding: "utf8" });
  fs.writeFileSync(`${folder}/package.json`, '{"type":"module"}');
  const modules = `${folder}/node_modules`;
  for (const name of ["client", "react"]) {
    const packed = run("npm", ["pack", "--silent", `${WEB}/${name}`]).trim();
    fs.mkdirSync(`${modules}/@greendot/${name}`, { recursive: true });
    run("tar", ["xzf", packed, "--strip-components=1", "-C", `${modules}/@greendot/${name}`]);
  }
  for (const name of fs.readdirSync(`${PACKAGES}/node_modules`).filter((name) => name[0] !== "."))
    fs.symlinkSync(`${PACKAGES}/node_modules/${name}`, `${modules}/${name}`);
  return folder;
}

// The nth block of a language in a text of Markdown, for another server than the one it names.
export function block(text, language, server, n = 0) {
  const blocks = text.split(`\`\`\`${language}\n`).slice(1);
  return blocks[n].split("```")[0].replaceAll("http://127.0.0.1:8080", server.url);
}

// One script of a file of a project and all that it imports.
export function bundle(folder, file) {
  const flags = ["--bundle", "--minify", "--format=esm", "--jsx=automatic", "--preserve-symlinks"];
  const more = ["--log-level=error", "--outfile=bundle.js"];
  execFileSync(`${PACKAGES}/node_modules/.bin/esbuild`, [file, ...flags, ...more], { cwd: folder });
  return fs.readFileSync(`${folder}/bundle.js`, "utf8").replaceAll("</script", "<\\/script");
}
