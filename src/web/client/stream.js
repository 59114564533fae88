// One stream of server-sent events, kept alive. docs/PROTOCOL.md has the wire.
//
// `wanted` is whom the application watches, `told` whom the server does. Edits take one to the
// other: a reconnecting EventSource repeats its first URL, so after each hello that is told.

import { later, listen } from "./page.js";
import { ASK_MS_MAX } from "./server.js";

// Longest query of a URL, well below the 8 KiB that servers and proxies take; edits bring the rest.
const QUERY_CHARS_MAX = 4000;
const EDIT_USERS_MAX = 1000;
const BACKOFF_MS_MIN = 1000;
const BACKOFF_MS_MAX = 30000;
// Until a hello has said it.
const KEEP_ALIVE_MS = 15000;
// Of keep_alive_ms: the silence after which nothing is known, and how often that is looked at.
const SILENCE_MAX = 1.25;
const LOOK = 0.1;
// A page that wakes may have events in its queue that came in time.
const WAKE_GRACE_MS = 500;
// While nothing is heard the server is asked this often whether it can be reached.
const PROBE_MS = 1000;
// Time for a new source to say hello before a reachable server is asked anew; doubled each time.
const HELLO_MS_MIN = 3000;
const HELLO_MS_MAX = 60000;
// Longest time for a source to connect: its packets are repeated ever more seldom.
const CONNECT_MS_MAX = 20000;
// A server that said goodbye or overloaded chose when its readers come back.
const PARTING_MS_MAX = 60000;
const BEAT_MS_MAX = 5000;
// Beats in a row of a live stream that come to nothing.
const ASTRAY_MAX = 2;

export class Stream {
  #server;
  #tell;
  #EventSource;
  #user;
  #vouch;
  #ticket;
  // For how long nobody has been at this device, if that is to be said.
  #idleMs;
  // The ticket of #source may have been spent: who comes back with it is told not to.
  #spent = false;
  // Which ticket is waited for.
  #asked = 0;
  #wanted;
  #told = new Set();
  // Of #told, those of whom nothing is known and nothing comes: the id does not count them.
  #untold = new Set();
  #urlUsers = [];
  // What is shown.
  #records;
  // Whose shown record is this stream's word, not a former one's.
  #ours = new Set();
  // This stream's word on users of whom a former one told something newer.
  #held = new Map();
  #source = null;
  #stream = null;
  #lastEventId = "";
  // Whose changes #lastEventId counts: those told when it came.
  #covered = new Set();
  // Of whom this stream has told since then: its next id counts them.
  #heard = new Set();
  #editing = false;
  // The edit whose outcome is not certain.
  #sent = null;
  // An edit was refused: removals go alone, and so many are added at once.
  #refused = false;
  #addMax = EDIT_USERS_MAX;
  #failures = 0;
  #connectTimer = null;
  #editTimer = null;
  #closed = false;
  // When something was last heard, when the source was made, and when the server parted.
  #heardAt = clocks();
  #triedAt = clocks();
  #partedAt = null;
  #keepAliveMs = KEEP_ALIVE_MS;
  // Nothing is heard: what is not this stream's word is the last known.
  #stale = false;
  #looking = null;
  #probing = false;
  #probedAt = clocks();
  #helloMs = HELLO_MS_MIN;
  #editAbort = null;
  #beatAbort = null;
  #beats = false;
  #astray = 0;
  #unlisten;

  // `records` are what a former stream knew. `tell` is called with
  //   "open", hello   "presence", record   "stale"   "live"   "left"   "trouble", path
  //   "error", {status, detail, users}
  // users: whom the server refuses to let us watch; they are not watched any more.
  constructor(server, options, tell) {
    this.#server = server;
    this.#tell = tell;
    this.#EventSource = options.EventSource;
    this.#user = options.user ?? null;
    this.#vouch = options.vouch ?? "self";
    this.#ticket = options.ticket ?? (server.token === null ? null : () => this.#makeTicket());
    this.#idleMs = options.idleMs;
    this.#wanted = new Set(options.watch);
    this.#records = new Map(options.records);
    this.#connect();
    this.#lookLater();
    this.#unlisten = [
      listen("online", () => this.#lost(this.#source, true)),
      listen("offline", () => this.#becomeStale()),
      listen("pageshow", () => this.#wake()),
      listen("visibilitychange", () => document.visibilityState === "visible" && this.#wake()),
    ];
  }

  // `known` are records that another stream told.
  watch(users, known = []) {
    for (const record of known)
      if (!this.#records.has(record.user)) this.#records.set(record.user, record);
    for (const user of users) this.#wanted.add(user);
    this.#edit();
  }

  unwatch(users) {
    for (const user of users) this.#wanted.delete(user);
    this.#edit();
  }

  // What is known of a user who is watched; undefined before the first answer.
  get(user) {
    return this.#wanted.has(user) ? this.#known(user) : undefined;
  }

  // Somebody is back at this device.
  beat() {
    this.#beat();
  }

  // Ends the stream for good; the server sees its holder go when the beats end.
  close() {
    this.#closed = true;
    for (const timer of [this.#connectTimer, this.#editTimer, this.#looking]) clearTimeout(timer);
    for (const unlisten of this.#unlisten) unlisten();
    this.#drop();
  }

  #connect() {
    const asked = (this.#asked += 1);
    if (this.#ticket === null) return this.#open(null);
    let timer;
    const late = new Promise((_, fail) => {
      timer = later(() => fail(new Error("no ticket in time")), ASK_MS_MAX);
    });
    const isWanted = () => asked === this.#asked && !this.#closed;
    Promise.race([Promise.resolve().then(() => this.#ticket()), late])
      .then(
        (ticket) => isWanted() && this.#open(ticket ?? null),
        (error) => {
          if (!isWanted()) return;
          this.#connectTimer = setTimeout(() => this.#connect(), this.#backoff());
          this.#tell("error", { status: error.status ?? 0, detail: error.message ?? `${error}` });
        },
      )
      .finally(() => clearTimeout(timer));
  }

  // A ticket of the token. Null where nobody is asked for one.
  async #makeTicket() {
    const { status, detail, body } = await this.#server.ask("/v1/ticket");
    if (status === 404) return null;
    if (status !== 200) throw Object.assign(new Error(detail), { status });
    return body.ticket;
  }

  #open(ticket) {
    // Who resumes is told only of changes since the id: whom it does not count, an edit adds.
    const resumes = this.#lastEventId !== "";
    const query = new URLSearchParams();
    if (this.#user !== null) query.append("user", this.#user);
    if (this.#user !== null && this.#vouch === "self") query.append("vouch", "self");
    if (resumes) query.append("last_event_id", this.#lastEventId);
    if (ticket !== null) query.append("ticket", ticket);
    this.#spent = false;
    this.#urlUsers = [];
    // An EventSource does not say why it was refused. If the list was too long, a shorter one
    // helps: the answers to edits can be read.
    const charsMax = QUERY_CHARS_MAX >> Math.min(this.#failures, 12);
    let chars = query.toString().length;
    for (const user of this.#wanted) {
      if (resumes && !this.#covered.has(user)) continue;
      chars += new URLSearchParams({ watch: user }).toString().length + 1;
      if (chars > charsMax) break;
      query.append("watch", user);
      this.#urlUsers.push(user);
    }
    const path = `/v1/stream?${query}`;
    const source = new this.#EventSource(this.#server.base + path);
    this.#source = source;
    this.#triedAt = clocks();
    let lastEventId = "";
    const on = (kind, handle) =>
      source.addEventListener(kind, (event) => {
        // A source that was replaced or closed may have events in flight.
        if (source !== this.#source) return;
        this.#heardAt = clocks();
        handle.call(this, event.data === undefined ? undefined : JSON.parse(event.data));
        if (source !== this.#source) return;
        // An event without an id of its own has the one before, which may be a former stream's.
        if (event.lastEventId && event.lastEventId !== lastEventId) {
          lastEventId = event.lastEventId;
          this.#toldUpTo(lastEventId);
          this.#settle();
        } else if (kind === "presence" || kind === "ping") {
          // These come when the snapshot is whole.
          this.#settle();
        }
      });
    on("hello", (hello) => {
      this.#spent = ticket !== null;
      this.#hello(hello);
    });
    on("snapshot", this.#snapshot);
    on("presence", this.#apply);
    on("ping", () => this.#beat());
    on("bye", this.#leave);
    for (const kind of ["overloaded", "goodbye"]) {
      on(kind, ({ reason }) => {
        if (reason === "left") return this.#leave();
        this.#partedAt = clocks();
        this.#spent = ticket !== null;
        if (kind === "overloaded")
          this.#tell("error", { status: 503, detail: `the server is at a limit: ${reason}` });
      });
    }
    source.addEventListener("error", () => {
      if (source !== this.#source) return;
      if (this.#stream === null && this.#partedAt === null) this.#tell("trouble", path);
      this.#lost(source);
    });
  }

  // The user has said goodbye, or was logged out: who comes back would be online again.
  #leave() {
    this.close();
    this.#tell("left");
  }

  #hello(hello) {
    this.#failures = 0;
    this.#stream = hello.stream;
    this.#keepAliveMs = hello.keep_alive_ms ?? KEEP_ALIVE_MS;
    this.#beats = hello.vouch === "self";
    this.#astray = 0;
    this.#partedAt = null;
    this.#helloMs = HELLO_MS_MIN;
    this.#sent = null;
    this.#refused = false;
    this.#addMax = EDIT_USERS_MAX;
    for (const user of [...this.#records.keys()]) if (!this.#wanted.has(user)) this.#forget(user);
    this.#told = new Set(this.#urlUsers);
    this.#covered = new Set(this.#urlUsers.filter((user) => this.#covered.has(user)));
    const resumes = this.#lastEventId !== "";
    this.#untold = new Set(this.#urlUsers.filter((user) => resumes && !this.#covered.has(user)));
    this.#ours.clear();
    this.#held.clear();
    this.#heard.clear();
    this.#tell("open", hello);
    this.#edit();
  }

  #snapshot({ presence }) {
    for (const record of presence) this.#apply(record);
    // The last part has an id, unless the server can give none now.
    if (this.#stale) {
      const stream = this.#stream;
      later(() => stream !== null && stream === this.#stream && this.#settle(), PROBE_MS);
    }
  }

  // Within a stream the last word counts. The next stream may come from a node that has heard less:
  // what is older than a former stream's word waits for the stream's next id.
  #apply(record) {
    const user = record.user;
    // Whoever is still told stays known, if nobody hears of it: to watch them again may need no
    // edit, and then brings no state.
    if (!this.#wanted.has(user) && !this.#told.has(user)) return;
    const before = this.#records.get(user);
    this.#held.delete(user);
    // Another node's not knowing yet takes back nothing.
    if (before && record.status === "unknown") return;
    this.#untold.delete(user);
    if (!this.#covered.has(user)) this.#heard.add(user);
    if (before && !this.#ours.has(user) && (before.since ?? 0) > (record.since ?? 0)) {
      this.#held.set(user, record);
    } else {
      this.#show(record);
    }
  }

  // The stream has been told everything up to `id`: what it says replaces what a former one told of
  // that time (the server has lost it). After a step back of the server's clock ids are small, and
  // take back nothing yet: a node that has heard less looks just so.
  #toldUpTo(id) {
    this.#lastEventId = id;
    // Of whom an edit has yet to be answered may have been told before it.
    for (const user of this.#heard) {
      if (!this.#told.has(user)) continue;
      this.#heard.delete(user);
      this.#covered.add(user);
    }
    for (const [user, record] of this.#held) {
      if (!((this.#records.get(user).since ?? 0) <= Number(id))) continue;
      this.#held.delete(user);
      this.#show(record);
    }
  }

  // The state of a user as it is shown: the last known, or what is.
  #known(user) {
    const record = this.#records.get(user);
    return record && this.#stale && !this.#ours.has(user) ? { ...record, stale: true } : record;
  }

  #show(record) {
    const before = this.#known(record.user);
    this.#records.set(record.user, record);
    this.#ours.add(record.user);
    const isSame =
      before &&
      !before.stale === !record.stale &&
      before.status === record.status &&
      before.since === record.since;
    if (this.#wanted.has(record.user) && !isSame) this.#tell("presence", record);
  }

  #forget(user) {
    for (const known of [this.#records, this.#ours, this.#held, this.#covered, this.#heard])
      known.delete(user);
  }

  #lost(source, anew = false) {
    this.#abort();
    if (anew) {
      this.#drop();
      clearTimeout(this.#connectTimer);
      this.#connect();
      return;
    }
    // CONNECTING: it tries again by itself, after the server's `retry`. CLOSED: it never will.
    if (source.readyState !== 2) return;
    this.#source = null;
    if (this.#spent) {
      // It is the ticket that was refused, after the delay that the server chose.
      this.#spent = false;
      return this.#connect();
    }
    this.#connectTimer = setTimeout(() => this.#connect(), this.#backoff());
  }

  // What is under way for the stream is of no use.
  #abort() {
    this.#stream = null;
    this.#editAbort?.abort();
    this.#beatAbort?.abort();
  }

  #drop() {
    this.#asked += 1;
    this.#abort();
    this.#source?.close();
    this.#source = null;
  }

  #isSilent() {
    return since(this.#heardAt) >= this.#keepAliveMs * SILENCE_MAX;
  }

  #lookLater() {
    if (this.#closed) return;
    clearTimeout(this.#looking);
    const leftMs = this.#keepAliveMs * SILENCE_MAX - since(this.#heardAt);
    const soonMs = leftMs > 0 ? leftMs : PROBE_MS / 4;
    this.#looking = later(() => this.#look(), Math.min(soonMs, this.#keepAliveMs * LOOK));
  }

  // A live stream is never silent for longer than keep_alive_ms: a silent one is dead, whatever its
  // socket says. Then the server is asked whether it can be reached.
  #look() {
    this.#lookLater();
    if (!this.#isSilent()) return;
    this.#becomeStale();
    if (this.#partedAt !== null && since(this.#partedAt) < PARTING_MS_MAX) return;
    // The stream that fell silent, or a source that does not get through.
    if (this.#stream !== null || since(this.#triedAt) > CONNECT_MS_MAX) {
      if (this.#source !== null) this.#lost(this.#source, true);
    } else if (!this.#probing && since(this.#probedAt) >= PROBE_MS * (0.75 + Math.random() / 4)) {
      this.#probe();
    }
  }

  // The page has slept, or the browser has throttled it.
  #wake() {
    if (!this.#isSilent()) return;
    this.#becomeStale();
    later(() => this.#look(), WAKE_GRACE_MS);
  }

  // Any answer shows that the network is back.
  async #probe() {
    this.#probing = true;
    this.#probedAt = clocks();
    const init = { method: "GET", mode: "no-cors", cache: "no-store", credentials: "omit" };
    const { status } = await this.#server.ask("/livez", init, PROBE_MS);
    this.#probing = false;
    if (status === 0 || status >= 500 || this.#closed || this.#stream !== null) return;
    // A source that is new may be about to say hello; one that was refused is tried in its time.
    if (this.#source === null || since(this.#triedAt) < this.#helloMs) return;
    this.#helloMs = Math.min(this.#helloMs * 2, HELLO_MS_MAX);
    this.#lost(this.#source, true);
  }

  #becomeStale() {
    if (this.#stale) return;
    this.#changing("stale", () => {
      this.#stale = true;
      this.#ours.clear();
    });
  }

  // The stream has told all that it has to: what it did not tell is as it was.
  #settle() {
    if (this.#stale && this.#stream !== null) this.#changing("live", () => (this.#stale = false));
  }

  // Tells of those whose state is shown otherwise than before.
  #changing(kind, change) {
    const shown = [...this.#wanted].map((user) => [user, this.#known(user)]);
    change();
    this.#tell(kind);
    for (const [user, before] of shown) {
      const record = this.#known(user);
      if (before && record !== before && this.#wanted.has(user)) this.#tell("presence", record);
    }
  }

  // Answers a ping, over another connection: a frozen page, or a dead one behind a proxy, does not.
  // No timer is involved, for those of a hidden page run once a minute.
  async #beat(again = true) {
    const stream = this.#stream;
    if (!this.#beats || stream === null) return;
    this.#beatAbort?.abort();
    const abort = (this.#beatAbort = new AbortController());
    const path = `/v1/stream/${encodeURIComponent(stream)}/beat`;
    const init = this.#idleMs ? { json: { idle_ms: this.#idleMs() } } : {};
    const { status, detail } = await this.#server.ask(path, init, BEAT_MS_MAX, abort);
    if (abort !== this.#beatAbort || stream !== this.#stream) return;
    if (status >= 200 && status < 300) {
      this.#astray = 0;
      return;
    }
    if (status === 404 || (status === 0 && !again)) this.#astray += 1;
    if (this.#astray >= ASTRAY_MAX) {
      // The pings come, and the answers do not: a balancer sends them to another node, or the
      // browser has no connection left for them. So the stream has to do.
      this.#vouch = "stream";
      this.#tell("error", { status, detail });
      this.#lost(this.#source, true);
    } else if (isPassing(status) && again) {
      later(() => abort === this.#beatAbort && this.#beat(false), BACKOFF_MS_MIN);
    } else if (status !== 404) {
      this.#tell("error", { status, detail });
    }
  }

  #backoff() {
    const base = Math.min(BACKOFF_MS_MIN * 2 ** Math.min(this.#failures, 10), BACKOFF_MS_MAX);
    this.#failures += 1;
    return base * (0.75 + Math.random() / 2);
  }

  // One edit at a time. What may have happened or not is sent again as it was: what the server
  // watches is certain only then.
  async #edit() {
    if (this.#editing) return;
    this.#editing = true;
    try {
      while (this.#stream !== null && !this.#closed) {
        this.#sent ??= this.#next();
        if (this.#sent === null || !(await this.#send(this.#stream, this.#sent))) return;
      }
    } finally {
      this.#editing = false;
    }
  }

  #next() {
    const remove = [...this.#told]
      .filter((user) => !this.#wanted.has(user))
      .slice(0, EDIT_USERS_MAX);
    const missing = [...this.#wanted].filter(
      (user) => !this.#told.has(user) || this.#untold.has(user),
    );
    const add = this.#refused && remove.length > 0 ? [] : missing.slice(0, this.#addMax);
    return add.length + remove.length === 0 ? null : { add, remove };
  }

  // True if there may be more to send now.
  async #send(stream, edit) {
    const abort = (this.#editAbort = new AbortController());
    const path = `/v1/stream/${encodeURIComponent(stream)}/watch`;
    const { status, detail } = await this.#server.ask(path, { json: edit }, ASK_MS_MAX, abort);
    // Another stream has begun meanwhile: its `hello` has set `told` anew.
    if (stream !== this.#stream) return true;
    if (isPassing(status)) {
      this.#editTimer = setTimeout(() => this.#edit(), this.#backoff());
      this.#tell("error", { status, detail });
      return false;
    }
    this.#sent = null;
    if (status >= 200 && status < 300) {
      this.#addMax = Math.min(this.#addMax * 2, EDIT_USERS_MAX);
      for (const user of edit.add) {
        this.#told.add(user);
        this.#untold.delete(user);
      }
      for (const user of edit.remove) {
        this.#told.delete(user);
        this.#untold.delete(user);
        this.#forget(user);
      }
      return true;
    }
    if ([400, 403, 413].includes(status) && edit.add.length > 0) {
      this.#narrow(edit, { status, detail });
      return true;
    }
    // 404: the stream has ended, and the next `hello` brings everything.
    if (status !== 404) this.#tell("error", { status, detail });
    return false;
  }

  // The server refuses an edit for somebody in it, or for their number: finds out who can be
  // watched, and gives up the others.
  #narrow(edit, refusal) {
    this.#refused = true;
    // Again without the additions, which may need the room.
    if (edit.remove.length > 0) return;
    if (edit.add.length > 1) {
      this.#addMax = Math.ceil(edit.add.length / 2);
      return;
    }
    // 413: not even one more, whoever it is.
    const users =
      refusal.status === 413 ? [...this.#wanted].filter((user) => !this.#told.has(user)) : edit.add;
    for (const user of users) {
      this.#wanted.delete(user);
      this.#forget(user);
    }
    this.#tell("error", { ...refusal, users });
  }
}

// Whether it may go better later.
const isPassing = (status) => status === 0 || status === 408 || status === 429 || status >= 500;

// Over a suspend, too, which one of the two clocks does not count; the other may be set.
const clocks = () => [Date.now(), performance.now()];
const since = (then) => Math.max(...clocks().map((now, at) => now - then[at]));
