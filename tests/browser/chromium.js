// A headless Chromium, spoken to by the DevTools protocol over a pipe (--remote-debugging-pipe):
// messages of JSON, each ended by a NUL.
"use strict";

const { spawn, spawnSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const FLAGS = [
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-extensions",
  "--disable-component-update",
  "--disable-background-networking",
  "--remote-debugging-pipe",
  // The throttling of a page that has been hidden for long begins after seconds, not minutes.
  "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/1",
];

// The browser's program, if there is one.
function find() {
  for (const name of ["chromium", "chromium-browser", "google-chrome"])
    if (spawnSync(name, ["--version"]).status === 0) return name;
  return null;
}

class Chromium {
  #process;
  #folder;
  #calls = new Map();
  #next = 1;
  #rest = "";

  constructor(program) {
    this.#folder = fs.mkdtempSync(path.join(os.tmpdir(), "greendot-browser-"));
    this.#process = spawn(program, [...FLAGS, `--user-data-dir=${this.#folder}`, "about:blank"], {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
      // A group of its own, so that all its processes can be ended.
      detached: true,
    });
    this.#process.stdio[4].setEncoding("utf8");
    this.#process.stdio[4].on("data", (text) => {
      const messages = (this.#rest + text).split("\0");
      this.#rest = messages.pop();
      for (const message of messages) this.#take(JSON.parse(message));
    });
    const end = (error) => {
      for (const { fail } of this.#calls.values()) fail(error);
      this.#calls.clear();
    };
    this.#process.on("error", end);
    this.#process.on("exit", (code) => end(new Error(`the browser ended with ${code}`)));
    this.#process.stdio[3].on("error", () => {});
  }

  #take({ id, result, error }) {
    const call = this.#calls.get(id);
    if (!call) return;
    this.#calls.delete(id);
    if (error) call.fail(new Error(`${call.method}: ${error.message}`));
    else call.done(result);
  }

  send(method, params = {}, sessionId) {
    const id = this.#next++;
    return new Promise((done, fail) => {
      this.#calls.set(id, { method, done, fail });
      this.#process.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0");
    });
  }

  // A page, loaded and in front of the others.
  async open(url) {
    const { targetId } = await this.send("Target.createTarget", { url });
    const attached = await this.send("Target.attachToTarget", { targetId, flatten: true });
    return new Page(this, targetId, attached.sessionId);
  }

  // The processes that run pages.
  renderers() {
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
    walk(this.#process.pid);
    return found;
  }

  close() {
    const ended = new Promise((done) => this.#process.once("exit", done));
    process.kill(-this.#process.pid, "SIGKILL");
    // One that outlives the others must not keep this process waiting for its end of a pipe.
    for (const pipe of this.#process.stdio.slice(3)) pipe.destroy();
    const rest = { recursive: true, force: true, maxRetries: 5 };
    return ended.then(() => fs.rmSync(this.#folder, rest));
  }
}

class Page {
  #browser;
  #target;
  #session;

  constructor(browser, target, session) {
    this.#browser = browser;
    this.#target = target;
    this.#session = session;
  }

  async evaluate(expression) {
    const params = { expression, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await this.#browser.send(
      "Runtime.evaluate",
      params,
      this.#session,
    );
    if (exceptionDetails) throw new Error(JSON.stringify(exceptionDetails));
    return result.value;
  }

  front() {
    return this.#browser.send("Target.activateTarget", { targetId: this.#target });
  }
}

module.exports = { Chromium, find };
