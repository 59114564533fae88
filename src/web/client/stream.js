// One stream of server-sent events, kept alive. docs/PROTOCOL.md has the wire.
//
// Owns when it is opened, whether it lives, and that its holder beats. What it tells is known.js's
// to keep, whom it watches edits.js's to change.

import { Edits } from "./edits.js";
import { Known } from "./known.js";
import { Backoff, FAILURES_MAX, isPassing, later, listen } from "./page.js";
import { ASK_MS_MAX } from "./server.js";

// Longest query of a URL, well below the 8 KiB that servers and proxies take; edits bring the rest.
const QUERY_CHARS_MAX = 4000;
const BEAT_AGAIN_MS = 1000;
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
  #known;
  #edits;
  #backoff = new Backoff();
  #urlUsers = [];
  #source = null;
  #stream = null;
  #connectTimer = null;
  #closed = false;
  // When something was last heard, when the source was made, and when the server parted.
  #heardAt = clocks();
  #triedAt = clocks();
  #partedAt = null;
  #keepAliveMs = KEEP_ALIVE_MS;
  #looking = null;
  #probing = false;
  #probedAt = clocks();
  #helloMs = HELLO_MS_MIN;
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
    this.#known = new Known(options.watch, options.records, tell);
    this.#edits = new Edits(server, this.#known, this.#backoff, tell);
    this.#connect();
    this.#lookLater();
    this.#unlisten = [
      listen("online", () => this.#anew()),
      listen("offline", () => this.#known.becomeStale()),
      listen("pageshow", () => this.#wake()),
      listen("visibilitychange", () => document.visibilityState === "visible" && this.#wake()),
    ];
  }

  // `known` are records that another stream told.
  watch(users, known = []) {
    this.#known.add(known);
    for (const user of users) this.#known.wanted.add(user);
    this.#edits.edit();
  }

  unwatch(users) {
    for (const user of users) this.#known.wanted.delete(user);
    this.#edits.edit();
  }

  // What is known of a user who is watched; undefined before the first answer.
  get(user) {
    return this.#known.wanted.has(user) ? this.#known.get(user) : undefined;
  }

  // It is refused for somebody in its URL: edits find out whom.
  openBare() {
    this.#backoff.failures = FAILURES_MAX;
    this.#anew();
  }

  // Ends the stream for good; the server sees its holder go when the beats end.
  close() {
    this.#closed = true;
    for (const timer of [this.#connectTimer, this.#looking]) clearTimeout(timer);
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
          this.#connectTimer = setTimeout(() => this.#connect(), this.#backoff.next());
          this.#tell("error", { status: error.status ?? 0, detail: error.message ?? `${error}` });
        },
      )
      .finally(() => clearTimeout(timer));
  }

  // A ticket of the token. Null where nobody is asked for one.
  async #makeTicket() {
    const { ok, status, detail, body } = await this.#server.ask("/v1/ticket");
    if (status === 404) return null;
    if (!ok) throw Object.assign(new Error(detail), { status });
    return body.ticket;
  }

  #open(ticket) {
    const id = this.#known.lastEventId;
    const query = new URLSearchParams();
    if (this.#user !== null) query.append("user", this.#user);
    if (this.#user !== null && this.#vouch === "self") query.append("vouch", "self");
    if (id) query.append("last_event_id", id);
    if (ticket !== null) query.append("ticket", ticket);
    this.#spent = false;
    this.#urlUsers = [];
    // An EventSource does not say why it was refused. If the list was too long, a shorter one
    // helps: the answers to edits can be read.
    const charsMax = QUERY_CHARS_MAX >> this.#backoff.failures;
    let chars = query.toString().length;
    for (const user of this.#known.wanted) {
      // Who resumes is told only of changes since the id: whom it does not count, an edit adds.
      if (!this.#known.counts(user)) continue;
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
        handle.call(this, JSON.parse(event.data));
        if (source !== this.#source) return;
        // An event without an id of its own has the one before, which may be a former stream's.
        if (event.lastEventId && event.lastEventId !== lastEventId) {
          lastEventId = event.lastEventId;
          this.#known.toldUpTo(lastEventId);
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
    on("presence", (record) => this.#known.apply(record));
    on("ping", () => this.beat());
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
    this.#backoff.failures = 0;
    this.#stream = hello.stream;
    this.#keepAliveMs = hello.keep_alive_ms ?? KEEP_ALIVE_MS;
    this.#beats = hello.vouch === "self";
    this.#astray = 0;
    this.#partedAt = null;
    this.#helloMs = HELLO_MS_MIN;
    this.#known.begin(this.#urlUsers);
    this.#tell("open", hello);
    this.#edits.begin(hello.stream);
  }

  #snapshot({ presence }) {
    for (const record of presence) this.#known.apply(record);
    // The last part has an id, unless the server can give none now.
    if (this.#known.stale) {
      const stream = this.#stream;
      later(() => stream === this.#stream && this.#settle(), PROBE_MS);
    }
  }

  // Another source takes the place of this one.
  #anew() {
    this.#drop();
    clearTimeout(this.#connectTimer);
    this.#connect();
  }

  #lost(source) {
    this.#abort();
    // CONNECTING: it tries again by itself, after the server's `retry`. CLOSED: it never will.
    if (source.readyState !== 2) return;
    this.#source = null;
    if (this.#spent) {
      // It is the ticket that was refused, after the delay that the server chose.
      this.#spent = false;
      return this.#connect();
    }
    this.#connectTimer = setTimeout(() => this.#connect(), this.#backoff.next());
  }

  // What is under way for the stream is of no use.
  #abort() {
    this.#stream = null;
    this.#edits.end();
    this.#beatAbort?.abort();
  }

  #drop() {
    this.#asked += 1;
    this.#abort();
    this.#source?.close();
    this.#source = null;
  }

  // Until the stream has been silent for too long.
  #leftMs() {
    return this.#keepAliveMs * SILENCE_MAX - since(this.#heardAt);
  }

  #lookLater() {
    if (this.#closed) return;
    clearTimeout(this.#looking);
    const leftMs = this.#leftMs();
    const soonMs = leftMs > 0 ? leftMs : PROBE_MS / 4;
    this.#looking = later(() => this.#look(), Math.min(soonMs, this.#keepAliveMs * LOOK));
  }

  // A live stream is never silent for longer than keep_alive_ms: a silent one is dead, whatever its
  // socket says. Then the server is asked whether it can be reached.
  #look() {
    this.#lookLater();
    if (this.#leftMs() > 0) return;
    this.#known.becomeStale();
    if (this.#partedAt !== null && since(this.#partedAt) < PARTING_MS_MAX) return;
    // The stream that fell silent, or a source that does not get through.
    if (this.#stream !== null || since(this.#triedAt) > CONNECT_MS_MAX) {
      if (this.#source !== null) this.#anew();
    } else if (!this.#probing && since(this.#probedAt) >= PROBE_MS * (0.75 + Math.random() / 4)) {
      this.#probe();
    }
  }

  // The page has slept, or the browser has throttled it.
  #wake() {
    if (this.#leftMs() > 0) return;
    this.#known.becomeStale();
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
    this.#anew();
  }

  // The stream has told all that it has to.
  #settle() {
    if (this.#stream !== null) this.#known.becomeLive();
  }

  // Answers a ping, over another connection: a frozen page, or a dead one behind a proxy, does not.
  // No timer is involved, for those of a hidden page run once a minute. Whoever is back at this
  // device beats too.
  async beat(again = true) {
    const stream = this.#stream;
    if (!this.#beats || stream === null) return;
    this.#beatAbort?.abort();
    const abort = (this.#beatAbort = new AbortController());
    const path = `/v1/stream/${encodeURIComponent(stream)}/beat`;
    const init = this.#idleMs ? { json: { idle_ms: this.#idleMs() } } : {};
    const { ok, status, detail } = await this.#server.ask(path, init, BEAT_MS_MAX, abort);
    if (abort !== this.#beatAbort || stream !== this.#stream) return;
    if (ok) {
      this.#astray = 0;
      return;
    }
    if (status === 404 || (status === 0 && !again)) this.#astray += 1;
    if (this.#astray >= ASTRAY_MAX) {
      // The pings come, and the answers do not: a balancer sends them to another node, or the
      // browser has no connection left for them. So the stream has to do.
      this.#vouch = "stream";
      this.#tell("error", { status, detail });
      this.#anew();
    } else if (isPassing(status) && again) {
      later(() => abort === this.#beatAbort && this.beat(false), BEAT_AGAIN_MS);
    } else if (status !== 404) {
      this.#tell("error", { status, detail });
    }
  }
}

// Over a suspend, too, which one of the two clocks does not count; the other may be set.
const clocks = () => [Date.now(), performance.now()];
const since = (then) => Math.max(...clocks().map((now, at) => now - then[at]));
