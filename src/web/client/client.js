// Who is online, pushed the moment it changes; client.d.ts says what all this takes and gives.
//
//   import { Greendot } from "https://presence.example.com/client.js";
//   const gd = new Greendot({ url: "https://presence.example.com", user: "alice" });
//   const stop = gd.watch("bob", (state) => console.log(state.status));
//
// The tabs of an origin that show one user share one stream: the one that leads opens it, and tells
// the others.

import { check, listen } from "./page.js";
import { Server } from "./server.js";
import { Stream } from "./stream.js";
import { Tabs } from "./tabs.js";

// A page that goes away may be back: it was reloaded.
const RETURN_MS = 5000;
// Inputs within so long are one.
const INPUT_MS = 10000;
const INPUTS = ["pointerdown", "pointermove", "keydown", "wheel"];

export class Greendot {
  #options;
  #server;
  #user;
  // Whom this tab watches, with who listens; what was told of them, and how it is shown.
  #wanted = new Map();
  #records = new Map();
  #states = new Map();
  #listeners = { state: new Set(), live: new Set(), error: new Set() };
  #hello = null;
  #live = false;
  // A change of the status under way: a stream that opens before it would show the former one.
  #saying = Promise.resolve();
  #troubled = false;
  #inputAt = Date.now();
  #leaving = false;
  #closed = false;
  #unlisten;
  #tabs = null;
  // While this tab leads: its stream, whom each other tab watches, and what those are to be told.
  #stream = null;
  #others = new Map();
  #news = [];

  constructor(options = {}) {
    const { url = globalThis.location?.origin, user = null } = options;
    if (!url) throw new TypeError("url is missing: where is greendot?");
    if (user !== null) check(user);
    this.#options = options;
    this.#user = user;
    this.#server = new Server({ ...options, url });
    this.#unlisten = [
      listen("pagehide", () => this.#part(true)),
      listen("freeze", () => this.#part(false)),
      listen("pageshow", () => this.#join()),
      listen("resume", () => this.#join()),
    ];
    if (options.idle)
      for (const kind of INPUTS) this.#unlisten.push(listen(kind, () => this.#input(true)));
    this.#join();
  }

  watch(users, listener = () => {}) {
    users = [users].flat();
    users.forEach(check);
    const heard = (state) => listener(state);
    const add = users.filter((user) => !this.#wanted.has(user));
    for (const user of users) {
      if (!this.#wanted.has(user)) this.#wanted.set(user, new Set());
      this.#wanted.get(user).add(heard);
    }
    this.#want({ add });
    // What is known already.
    queueMicrotask(() => {
      for (const user of users) {
        const record = this.#stream?.get(user);
        if (!this.#wanted.get(user)?.has(heard)) continue;
        if (this.#states.has(user)) call(heard, this.get(user));
        else if (record) this.#take("presence", record);
      }
    });
    return () => {
      const remove = users.filter((user) => {
        const listeners = this.#wanted.get(user);
        if (!listeners?.delete(heard) || listeners.size > 0) return false;
        this.#records.delete(user);
        this.#states.delete(user);
        return this.#wanted.delete(user);
      });
      this.#want({ remove });
    };
  }

  get(user) {
    return this.#states.get(user);
  }

  now() {
    return Date.now() + (this.#hello?.ahead ?? 0);
  }

  get live() {
    return this.#live;
  }

  on(kind, listener) {
    const listeners = this.#listeners[kind];
    if (!listeners)
      throw new RangeError(`no such event: ${kind}; there are ${Object.keys(this.#listeners)}`);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  async query(users) {
    users = [users].flat();
    users.forEach(check);
    return (await this.#post("/v1/presence/query", { users })).presence.map(stateOf);
  }

  setStatus(status) {
    return this.#say({ status });
  }

  setInvisible(invisible) {
    return this.#say({ invisible });
  }

  async leave() {
    this.#leaving = true;
    if (this.#user !== null) await this.#post("/v1/leave", this.#goodbye());
    this.#tabs?.send({ left: true });
    this.close();
  }

  close() {
    this.#closed = true;
    for (const unlisten of this.#unlisten) unlisten();
    this.#part(false);
  }

  async #post(path, json) {
    const { ok, status, detail, body } = await this.#server.ask(path, { json });
    if (!ok) throw fault({ status, detail });
    return body;
  }

  #say(said) {
    if (this.#user === null) return Promise.reject(fault({ detail: "only a `user` has a status" }));
    const user = this.#user === "me" ? {} : { user: this.#user };
    const done = this.#post("/v1/status", { ...user, ...said }).then(() => {});
    this.#saying = done.catch(() => {});
    return done;
  }

  // Somebody is at this device, at this tab or another.
  #input(isOwn) {
    const idleMs = Date.now() - this.#inputAt;
    if (idleMs < INPUT_MS) return;
    this.#inputAt = Date.now();
    if (isOwn) this.#tabs?.send({ input: true });
    this.#stream?.beat();
  }

  #join() {
    if (this.#closed || this.#tabs) return;
    const name = `greendot ${this.#server.base} ${this.#user ?? ""}`;
    this.#tabs = new Tabs(name, {
      lead: () => this.#lead(),
      resign: () => this.#resign(),
      hear: (message) => this.#hear(message),
    });
  }

  // It names the user too, so that it counts if the stream has just ended.
  #goodbye() {
    const stream = this.#hello?.stream;
    const users = [this.#user];
    return stream && users[0] === "me" ? { stream } : { stream, users };
  }

  // The page goes: for ever, or to be frozen. Its stream goes on in another tab.
  #part(forGood) {
    const { stream, offline_after_ms } = this.#hello ?? {};
    if (forGood && this.#stream && stream && this.#user !== null) {
      const json = { ...this.#goodbye(), after_ms: Math.min(RETURN_MS, offline_after_ms) };
      this.#server.ask("/v1/leave", { json, keepalive: true });
    }
    this.#resign();
    this.#tabs?.send({ gone: true });
    this.#tabs?.close();
    this.#tabs = null;
    this.#setLive(false);
    // Nothing is heard any more: what is shown is the last known.
    for (const record of [...this.#records.values()])
      this.#take("presence", { ...record, stale: true });
  }

  async #lead() {
    const tabs = this.#tabs;
    await this.#saying;
    const { EventSource = globalThis.EventSource } = this.#options;
    const source = EventSource ?? (await import("./event-source.js")).EventSource;
    if (tabs !== this.#tabs || !tabs.leads) return;
    const options = {
      ...this.#options,
      EventSource: source,
      watch: [this.#wanted, ...this.#others.values()].flatMap((users) => [...users.keys()]),
      records: this.#records,
      idleMs: this.#options.idle && (() => Date.now() - this.#inputAt),
    };
    this.#stream = new Stream(this.#server, options, (kind, value) => this.#tell(kind, value));
  }

  #resign() {
    this.#stream?.close();
    this.#stream = null;
    this.#others.clear();
  }

  #want(change) {
    if (!this.#tabs?.leads) return this.#tabs?.send({ want: change });
    this.#stream?.watch(change.add ?? []);
    this.#unwatch(change.remove ?? []);
  }

  #unwatch(users) {
    const isWanted = (user) => [this.#wanted, ...this.#others.values()].some((of) => of.has(user));
    this.#stream?.unwatch(users.filter((user) => !isWanted(user)));
  }

  #hear({ from, led, want, news, gone, left, input }) {
    if (input) return this.#input(false);
    if (left) return this.#left();
    if (led) {
      const [add, known] = [[...this.#wanted.keys()], [...this.#records.values()]];
      this.#tabs.send({ want: { add, known } });
    } else if (!this.#tabs.leads) {
      for (const [kind, value] of news ?? []) this.#take(kind, value);
    } else if (want) {
      const { add = [], remove = [], known } = want;
      const before = this.#others.get(from);
      // Whoever has not heard yet that this tab leads says all again when it has.
      if (!before && !known) return;
      if (!before) this.#tabs.follow(from);
      const users = known ? new Set() : before;
      this.#others.set(from, users);
      for (const user of add) users.add(user);
      for (const user of remove) users.delete(user);
      this.#stream?.watch(add, known);
      this.#unwatch(known ? [...(before ?? [])] : remove);
      if (known && this.#hello) this.#publish("open", this.#hello);
      if (known && !this.#live) this.#publish("stale");
      for (const user of add) {
        const record = this.#stream?.get(user);
        if (record) this.#publish("presence", record);
      }
    } else if (gone) {
      const users = this.#others.get(from) ?? [];
      this.#others.delete(from);
      this.#unwatch([...users]);
    }
  }

  // What the stream tells, in the tab that leads.
  #tell(kind, value) {
    if (kind === "left") return this.#left();
    if (kind === "trouble") return this.#explain(value);
    if (kind === "open") {
      this.#troubled = false;
      value.ahead = value.server_time - Date.now();
    }
    this.#publish(kind, value);
    this.#take(kind, value);
  }

  // All of a turn in one message.
  #publish(kind, value) {
    if (this.#others.size === 0) return;
    if (this.#news.push([kind, value]) > 1) return;
    queueMicrotask(() => this.#tabs?.send({ news: this.#news.splice(0) }));
  }

  // And in each tab.
  #take(kind, value) {
    if (kind === "open") this.#hello = value;
    if (kind === "open" || kind === "live") this.#setLive(true);
    if (kind === "stale") this.#setLive(false);
    if (kind === "error") this.#fail(value);
    if (kind !== "presence" || !this.#wanted.has(value.user)) return;
    const before = this.get(value.user);
    this.#records.set(value.user, value);
    const state = stateOf(value);
    if (before && Object.keys(state).every((key) => before[key] === state[key])) return;
    this.#states.set(value.user, state);
    for (const listener of [...this.#wanted.get(value.user)]) call(listener, state);
    this.#emit("state", state);
  }

  #setLive(live) {
    if (this.#live === live) return;
    this.#live = live;
    this.#emit("live", live);
  }

  #emit(kind, value) {
    for (const listener of [...this.#listeners[kind]]) call(listener, value);
  }

  #fail(said) {
    for (const user of said.users ?? []) this.#wanted.delete(user);
    if (this.#listeners.error.size > 0) this.#emit("error", fault(said));
    else console.warn(`greendot: ${said.detail}`);
  }

  #left() {
    if (this.#closed) return;
    this.#tabs?.send({ left: true });
    this.close();
    if (this.#leaving) return;
    this.#fail({ detail: "the user has left, here or elsewhere: make another Greendot to return" });
  }

  // Why a stream is refused an EventSource does not say.
  async #explain(path) {
    if (this.#troubled) return;
    this.#troubled = true;
    const get = (what, init) => this.#server.ask(what, { method: "GET", ...init });
    let { status, detail } = await get(path, { method: "HEAD" });
    if (status >= 400) {
      detail = (await get(path)).detail;
    } else if (status > 0) {
      return;
    } else if ((await get("/livez", { mode: "no-cors" })).status === 0) {
      detail = `no answer from ${this.#server.base}: does greendot run there?`;
    } else {
      const { origin } = globalThis.location ?? {};
      detail = !/^http/.test(origin)
        ? "a page from a file has no origin: serve it over HTTP"
        : `this origin is not listed: --cors-origins ${origin}`;
    }
    if (this.#live) return;
    this.#tell("error", { status, detail });
    if ([400, 403, 413, 414].includes(status)) this.#stream?.openBare();
  }
}

const stateOf = ({ user, status, online, stale = false, since, last_active }) => ({
  user,
  status,
  online,
  stale,
  since,
  lastActive: last_active,
});

const fault = ({ status = 0, detail, users = [] }) =>
  Object.assign(new Error(detail), { name: "GreendotError", status, users });

// A listener's fault is the application's: it is said where that looks, and nothing here suffers.
function call(listener, value) {
  try {
    listener(value);
  } catch (error) {
    if (globalThis.reportError) return reportError(error);
    queueMicrotask(() => {
      throw error;
    });
  }
}
