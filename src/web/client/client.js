// greendot's browser client: who is online, pushed the moment it changes.
//
//   <script src="https://presence.example.com/client.js"></script>
//   const where = "https://presence.example.com";
//   const greendot = new Greendot(where, { user: "alice", watch: ["bob"] });
//   greendot.on("presence", (record) => console.log(record.user, record.status));
//   greendot.watch("carol"); greendot.unwatch("bob"); greendot.close();
//
// A record is { user, status, online, since, last_active }, both times in Unix ms or null. `status`
// is "online", "away" or "busy", which are ways of being here (`online` is true), or "offline", or
// "unknown", which a node of a split deployment says until it has asked. A record with
// `stale: true` is the last state known while nothing is heard: draw no green dot from it.
//
// A live stream is never silent for longer than the `keep_alive_ms` of its hello. A silent one is
// dead, whatever its socket says: every state becomes stale, and another stream is opened as soon
// as the server can be reached. The holder of a stream is online for as long as this page answers
// pings; no timer is involved, for those of a hidden page run once a minute.
//
// Where the server asks for tokens:
//   new Greendot(where, { user: "me", token: async () => (await fetch("/my-token")).text() });
// `token` is asked before each edit and beat, which show it in a header. An EventSource can set
// none: with `token`, each stream is opened by a ticket that the server makes of it. `ticket: async
// () => ..` gives tickets in its place, where the page's own backend makes them. A page whose
// cookie holds the token needs neither.
//
// A ticket is good for one stream. When a stream ends the browser comes back with the same URL
// after the delay that the server chose, and is told not to (204): then another ticket is asked
// for.
//
// An EventSource repeats its first URL when it reconnects, so after each `hello` the server watches
// what that URL named. `wanted` is what the application watches, `told` what the server does; edits
// are what takes one to the other, and a reconnect or a list that no URL could hold need nothing
// more.
(() => {
  "use strict";

  // Longest query put into the URL, well below the 8 KiB that servers and proxies take; the rest
  // follows as edits.
  const QUERY_CHARS_MAX = 4000;
  const EDIT_USERS_MAX = 1000;
  const USER_BYTES_MAX = 128;
  const BACKOFF_MS_MIN = 1000;
  const BACKOFF_MS_MAX = 30000;

  // Until a hello has said it.
  const KEEP_ALIVE_MS = 15000;
  // Of keep_alive_ms: silence after which nothing is known any more, and how often that is looked
  // at. Together less than one and a half.
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
  const EDIT_MS_MAX = 10000;
  const BEAT_MS_MAX = 5000;
  // For a ticket to be made.
  const TICKET_MS_MAX = 10000;
  // Beats in a row of a live stream that come to nothing.
  const ASTRAY_MAX = 2;

  const EVENTS = [
    "open",
    "presence",
    "snapshot",
    "stale",
    "live",
    "disconnect",
    "overloaded",
    "goodbye",
    "error",
    "close",
  ];

  // The server's rule (src/wire/user.rs): it would refuse the whole edit, or the whole URL, for one
  // that breaks it.
  function check(user) {
    const fault =
      typeof user !== "string"
        ? "it is not a string"
        : user === ""
          ? "it is empty"
          : new TextEncoder().encode(user).length > USER_BYTES_MAX
            ? `it is longer than ${USER_BYTES_MAX} bytes`
            : /\p{Cc}/u.test(user)
              ? "it holds a control character"
              : /\p{Cs}/u.test(user)
                ? "it holds a lone surrogate"
                : null;
    if (fault === null) return;
    const rule = `a user is 1 to ${USER_BYTES_MAX} bytes of UTF-8 without control characters`;
    throw new RangeError(`${JSON.stringify(String(user))} is no user: ${fault}; ${rule}`);
  }

  // The page's own time, also over a suspend, which one of the two clocks does not count; the other
  // may be set.
  const clocks = () => [Date.now(), globalThis.performance.now()];
  const since = (then) => Math.max(...clocks().map((now, at) => now - then[at]));

  // In tests nothing waits for a timer.
  function later(call, ms) {
    const timer = setTimeout(call, ms);
    timer.unref?.();
    return timer;
  }

  class Greendot {
    #base;
    #user;
    #vouch;
    #token;
    #ticket;
    // The ticket of #source may have been spent: who comes back with it is told not to.
    #spent = false;
    // Which ticket is waited for.
    #asked = 0;
    #wanted = new Set();
    #told = new Set();
    // Of #told, those of whom nothing is known and nothing comes: the stream resumes from an id
    // that does not count them.
    #untold = new Set();
    #urlUsers = [];
    // What is shown.
    #records = new Map();
    // Whose shown record is this stream's word, not a former one's.
    #ours = new Set();
    // This stream's word on users of whom a former one told something newer.
    #held = new Map();
    #listeners = new Map(EVENTS.map((kind) => [kind, new Set()]));
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
    // Sources in a row that the server has refused.
    #refusals = 0;
    #connectTimer = null;
    #editTimer = null;
    #closed = false;
    #EventSource;
    #fetch;
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
    // Ends the edit and the beat under way.
    #editAbort = null;
    #beatAbort = null;
    #beats = false;
    #astray = 0;
    #unlisten = [];

    // url: where the server is; "" for the page's own origin. options: user (be online as), watch
    // (users), vouch ("self", the default: the user is online while this page answers; "stream":
    // while its connection is open), token and ticket (functions; see above), and for tests
    // EventSource and fetch. Throws a RangeError for what can not be a user's id.
    constructor(url, options = {}) {
      this.#base = String(url ?? "").replace(/\/+$/, "");
      this.#user = options.user ?? null;
      this.#vouch = options.vouch ?? "self";
      if (!["self", "stream"].includes(this.#vouch))
        throw new RangeError(`vouch is "self" or "stream", not ${JSON.stringify(this.#vouch)}`);
      this.#token = options.token ?? null;
      this.#ticket = options.ticket ?? (this.#token === null ? null : () => this.#makeTicket());
      this.#EventSource = options.EventSource ?? globalThis.EventSource;
      this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
      if (this.#user !== null) check(this.#user);
      for (const user of options.watch ?? []) {
        check(user);
        this.#wanted.add(user);
      }
      this.#connect();
      this.#lookLater();
      this.#hear("online", () => this.#lost(this.#source, true));
      this.#hear("offline", () => this.#becomeStale());
      this.#hear("pageshow", () => this.#wake());
      this.#hear("visibilitychange", () => document.visibilityState === "visible" && this.#wake());
    }

    // Calls `listener` at each event of that kind; returns the function that ends this.
    //   open(hello)  presence(record, before)  snapshot(records)  disconnect()
    //   stale(): every state is the last known   live(): every state is right again
    //   overloaded({reason})  goodbye({reason})
    //   error({status, detail, users})  close()
    // users: whom the server refuses to let us watch; they are not watched any more.
    on(kind, listener) {
      const listeners = this.#listeners.get(kind);
      if (!listeners)
        throw new RangeError(`no such event: ${kind}; there are ${EVENTS.join(", ")}`);
      listeners.add(listener);
      return () => listeners.delete(listener);
    }

    // All of them, or for one that can not be a user's id a RangeError and none.
    watch(...users) {
      users.forEach(check);
      for (const user of users) this.#wanted.add(user);
      this.#edit();
    }

    unwatch(...users) {
      for (const user of users) this.#wanted.delete(user);
      this.#edit();
    }

    // What is known of a user who is watched; undefined before the first answer.
    get(user) {
      return this.#wanted.has(user) ? this.#known(user) : undefined;
    }

    // Whether nothing is heard, so that some states are the last known.
    get stale() {
      return this.#stale;
    }

    get watching() {
      return [...this.#wanted];
    }

    // Ends the stream for good. If it made somebody online, the server sees them go when their
    // beats end.
    close() {
      if (this.#closed) return;
      this.#closed = true;
      for (const timer of [this.#connectTimer, this.#editTimer, this.#looking]) clearTimeout(timer);
      for (const unlisten of this.#unlisten) unlisten();
      this.#drop();
      this.#emit("close");
    }

    #emit(kind, ...values) {
      for (const listener of [...this.#listeners.get(kind)]) {
        try {
          listener(...values);
        } catch (error) {
          // The application's fault: said where it looks for them, and none of what is still to do
          // here suffers.
          if (globalThis.reportError) globalThis.reportError(error);
          else
            queueMicrotask(() => {
              throw error;
            });
        }
      }
    }

    #connect() {
      const asked = (this.#asked += 1);
      if (this.#ticket === null) return this.#open(null);
      let timer;
      const late = new Promise((_, fail) => {
        timer = later(() => fail(new Error("no ticket in time")), TICKET_MS_MAX);
      });
      const isWanted = () => asked === this.#asked && !this.#closed;
      Promise.race([Promise.resolve().then(() => this.#ticket()), late])
        .then(
          (ticket) => isWanted() && this.#open(ticket ?? null),
          (error) => {
            if (!isWanted()) return;
            this.#connectTimer = setTimeout(() => this.#connect(), this.#backoff());
            this.#emit("error", { status: error.status ?? 0, detail: error.message ?? `${error}` });
          },
        )
        .finally(() => clearTimeout(timer));
    }

    // A ticket of the token. Null where nobody is asked for one.
    async #makeTicket() {
      const url = `${this.#base}/v1/ticket`;
      const init = { method: "POST" };
      const { status, detail, body } = await this.#ask(url, init, TICKET_MS_MAX);
      if (status === 404) return null;
      if (status !== 200) throw Object.assign(new Error(detail), { status });
      return body.ticket;
    }

    #open(ticket) {
      // Who resumes is told only of changes since the id: users whom it does not count are added by
      // an edit, which brings their state.
      const resumes = this.#lastEventId !== "";
      const query = new URLSearchParams();
      if (this.#user !== null) query.append("user", this.#user);
      if (this.#user !== null && this.#vouch === "self") query.append("vouch", "self");
      if (resumes) query.append("last_event_id", this.#lastEventId);
      if (ticket !== null) query.append("ticket", ticket);
      this.#spent = false;
      this.#urlUsers = [];
      // An EventSource does not say why it was refused. If it was for a list too long, a shorter
      // one helps, and the rest follows as edits, whose answers can be read.
      const charsMax = QUERY_CHARS_MAX >> Math.min(this.#refusals, 12);
      let chars = query.toString().length;
      for (const user of this.#wanted) {
        if (resumes && !this.#covered.has(user)) continue;
        chars += new URLSearchParams({ watch: user }).toString().length + 1;
        if (chars > charsMax) break;
        query.append("watch", user);
        this.#urlUsers.push(user);
      }
      const source = new this.#EventSource(`${this.#base}/v1/stream?${query}`);
      this.#source = source;
      this.#triedAt = clocks();
      let lastEventId = "";
      const listen = (kind, handle) =>
        source.addEventListener(kind, (event) => {
          // A source that was replaced or closed may have events in flight.
          if (source !== this.#source) return;
          this.#heardAt = clocks();
          handle.call(this, event.data === undefined ? undefined : JSON.parse(event.data));
          // An event without an id of its own has that of the one before, which after a reconnect
          // may be a former stream's.
          if (source !== this.#source) return;
          if (event.lastEventId && event.lastEventId !== lastEventId) {
            lastEventId = event.lastEventId;
            this.#toldUpTo(lastEventId);
            this.#settle();
          } else if (kind === "presence" || kind === "ping") {
            // These come when the snapshot is whole.
            this.#settle();
          }
        });
      listen("hello", (hello) => {
        this.#spent = ticket !== null;
        this.#hello(hello);
      });
      listen("snapshot", this.#snapshot);
      listen("presence", (record) => this.#apply(record));
      listen("ping", () => this.#beat());
      for (const kind of ["overloaded", "goodbye"]) {
        listen(kind, (said) => {
          this.#partedAt = clocks();
          this.#spent = ticket !== null;
          this.#emit(kind, said);
        });
      }
      source.addEventListener("error", () => source === this.#source && this.#lost(source));
    }

    #hello(hello) {
      this.#failures = 0;
      this.#refusals = 0;
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
      this.#emit("open", hello);
      this.#edit();
    }

    #snapshot({ presence }) {
      for (const record of presence) this.#apply(record);
      this.#emit("snapshot", presence);
      // The last part has an id, unless the server can give none now.
      if (this.#stale) {
        const stream = this.#stream;
        later(() => stream !== null && stream === this.#stream && this.#settle(), PROBE_MS);
      }
    }

    // Within a stream the last word counts. Between two it may not: the next may come from a node
    // that has heard less. So what is older than a former stream's word waits for the stream's next
    // id.
    #apply(record) {
      const user = record.user;
      // An edit may cross with what was already on its way. Whoever is still told stays known, if
      // nobody hears of it: to watch them again may need no edit, and then brings no state.
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

    // The stream has been told everything up to `id`: what it says replaces what a former one told
    // of that time (the server has lost it). After a step back of the server's clock ids are small,
    // and take back nothing until they have come up to what is shown: a node that has heard less
    // looks just so.
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
      const same =
        before &&
        !before.stale &&
        before.status === record.status &&
        before.since === record.since;
      if (this.#wanted.has(record.user) && !same) this.#emit("presence", record, before);
    }

    #forget(user) {
      for (const known of [this.#records, this.#ours, this.#held, this.#covered, this.#heard])
        known.delete(user);
    }

    #lost(source, anew = false) {
      const open = this.#stream !== null;
      this.#abort();
      if (open || !anew) this.#emit("disconnect");
      if (this.#closed) return;
      if (anew) {
        this.#drop();
        clearTimeout(this.#connectTimer);
        this.#connect();
        return;
      }
      // CONNECTING: the browser tries again by itself, after the server's `retry`. CLOSED: it never
      // will.
      if (source.readyState !== 2) return;
      this.#source = null;
      if (this.#spent) {
        // It is the ticket that was refused, after the delay that the server chose.
        this.#spent = false;
        return this.#connect();
      }
      this.#refusals += 1;
      this.#connectTimer = setTimeout(() => this.#connect(), this.#backoff());
    }

    // The stream is no more: what is under way for it is of no use.
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

    // Listens to the page, where there is one.
    #hear(kind, listener) {
      const target = kind === "visibilitychange" ? globalThis.document : globalThis;
      if (!target?.addEventListener) return;
      target.addEventListener(kind, listener);
      this.#unlisten.push(() => target.removeEventListener(kind, listener));
    }

    #lookLater() {
      if (this.#closed) return;
      clearTimeout(this.#looking);
      const leftMs = this.#keepAliveMs * SILENCE_MAX - since(this.#heardAt);
      const soonMs = leftMs > 0 ? leftMs : PROBE_MS / 4;
      this.#looking = later(() => this.#look(), Math.min(soonMs, this.#keepAliveMs * LOOK));
    }

    // Has anything been heard in time? Else nothing is known, and the server is asked whether it
    // can be reached.
    #look() {
      this.#lookLater();
      if (since(this.#heardAt) < this.#keepAliveMs * SILENCE_MAX) return;
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
      if (since(this.#heardAt) < this.#keepAliveMs * SILENCE_MAX) return;
      this.#becomeStale();
      later(() => this.#look(), WAKE_GRACE_MS);
    }

    // Any answer shows that the network is back.
    async #probe() {
      this.#probing = true;
      this.#probedAt = clocks();
      const init = { mode: "no-cors", cache: "no-store", credentials: "omit" };
      const { status } = await this.#ask(`${this.#base}/livez`, init, PROBE_MS);
      this.#probing = false;
      if (status === 0 || status >= 500 || this.#closed || this.#stream !== null) return;
      // A source that is new may be about to say hello; one that was refused is tried in its time.
      if (this.#source === null || since(this.#triedAt) < this.#helloMs) return;
      this.#helloMs = Math.min(this.#helloMs * 2, HELLO_MS_MAX);
      this.#lost(this.#source, true);
    }

    #becomeStale() {
      if (this.#stale) return;
      const shown = this.#shown();
      this.#stale = true;
      this.#ours.clear();
      this.#emit("stale");
      this.#showAgain(shown);
    }

    // The stream has told all that it has to: what it did not tell is as it was.
    #settle() {
      if (!this.#stale || this.#stream === null) return;
      const shown = this.#shown();
      this.#stale = false;
      this.#emit("live");
      this.#showAgain(shown);
    }

    #shown() {
      return [...this.#wanted].map((user) => [user, this.#known(user)]);
    }

    // Tells of those whose state is shown otherwise than before.
    #showAgain(shown) {
      for (const [user, before] of shown) {
        const record = this.#known(user);
        if (before && record !== before && this.#wanted.has(user))
          this.#emit("presence", record, before);
      }
    }

    // Answers a ping: this page is here. Over a connection of its own, so that a frozen page or a
    // dead one behind a proxy is not taken for one that lives.
    async #beat(again = true) {
      const stream = this.#stream;
      if (!this.#beats || stream === null) return;
      this.#beatAbort?.abort();
      const abort = (this.#beatAbort = new AbortController());
      const url = `${this.#base}/v1/stream/${encodeURIComponent(stream)}/beat`;
      const { status, detail } = await this.#ask(url, { method: "POST" }, BEAT_MS_MAX, abort);
      if (abort !== this.#beatAbort || stream !== this.#stream) return;
      if (status >= 200 && status < 300) {
        this.#astray = 0;
        return;
      }
      const failed = status === 0 || status === 408 || status === 429 || status >= 500;
      if (status === 404 || (status === 0 && !again)) this.#astray += 1;
      if (this.#astray >= ASTRAY_MAX) {
        // The pings come, and the answers do not: a balancer sends them to another node, or the
        // browser has no connection left for them (six to a server without HTTP/2, of all tabs
        // together). So the stream has to do.
        this.#vouch = "stream";
        this.#emit("error", { status, detail });
        this.#lost(this.#source, true);
      } else if (failed && again) {
        later(() => abort === this.#beatAbort && this.#beat(false), BACKOFF_MS_MIN);
      } else if (status !== 404) {
        this.#emit("error", { status, detail });
      }
    }

    // Asks, showing the token unless it is but a probe, and waits for so long; the status is 0 if
    // there is no answer.
    async #ask(url, init, timeoutMs, abort = new AbortController()) {
      const gone = new Promise((_, fail) =>
        abort.signal.addEventListener("abort", () => fail(new Error("no answer in time"))),
      );
      gone.catch(() => {});
      const timer = later(() => abort.abort(), timeoutMs);
      try {
        const headers = { ...init.headers };
        if (this.#token !== null && init.method === "POST") {
          headers.Authorization = `Bearer ${await Promise.race([this.#token(), gone])}`;
        }
        // Some do not end when they are told to.
        const asked = this.#fetch(url, { ...init, headers, signal: abort.signal });
        const answer = await Promise.race([asked, gone]);
        // Of another origin's answer only its coming is seen.
        if (answer.type === "opaque") return { status: 200, detail: "" };
        if (answer.ok) {
          const body = answer.status === 200 && answer.json ? answer.json().catch(() => ({})) : {};
          return { status: answer.status, detail: "", body: await Promise.race([body, gone]) };
        }
        const problem = await Promise.race([answer.json().catch(() => ({})), gone]);
        return { status: answer.status, detail: problem.detail ?? answer.statusText };
      } catch (error) {
        return { status: 0, detail: String(error) };
      } finally {
        clearTimeout(timer);
      }
    }

    #backoff() {
      const base = Math.min(BACKOFF_MS_MIN * 2 ** Math.min(this.#failures, 10), BACKOFF_MS_MAX);
      this.#failures += 1;
      return base * (0.75 + Math.random() / 2);
    }

    // Takes the server's watch list to the wanted one, one request at a time. What may have
    // happened or not is sent again as it was: what the server watches is certain only then.
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
      const { status, detail } = await this.#ask(
        `${this.#base}/v1/stream/${encodeURIComponent(stream)}/watch`,
        {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(edit),
        },
        EDIT_MS_MAX,
        abort,
      );
      // Another stream has begun meanwhile: its `hello` has set `told` anew.
      if (stream !== this.#stream) return true;
      if (status === 0 || status === 408 || status === 429 || status >= 500) {
        this.#editTimer = setTimeout(() => this.#edit(), this.#backoff());
        this.#emit("error", { status, detail });
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
      if ((status === 400 || status === 413) && edit.add.length > 0) {
        this.#narrow(edit, { status, detail });
        return true;
      }
      // 404: the stream has ended, and its end is on the way here; the next `hello` brings
      // everything.
      if (status !== 404) this.#emit("error", { status, detail });
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
      const full = refusal.status === 413;
      const users = edit.add.concat(
        full
          ? [...this.#wanted].filter((user) => !this.#told.has(user) && user !== edit.add[0])
          : [],
      );
      for (const user of users) {
        this.#wanted.delete(user);
        this.#forget(user);
      }
      this.#emit("error", { ...refusal, users });
    }
  }

  globalThis.Greendot = Greendot;
})();
