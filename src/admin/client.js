// greendot's browser client: who is online, pushed the moment it changes.
//
//   <script src="https://presence.example.com/client.js"></script>
//   const greendot = new Greendot("https://presence.example.com", { user: "alice", watch: ["bob"] });
//   greendot.on("presence", (record) => console.log(record.user, record.status));
//   greendot.watch("carol"); greendot.unwatch("bob"); greendot.close();
//
// A record is { user, status: "online" | "offline" | "unknown", since, last_active }, both times in Unix ms or null.
// "unknown" is what a node of a split deployment says until it has asked.
//
// An EventSource repeats its first URL when it reconnects, so after each `hello` the server watches what that URL named.
// `wanted` is what the application watches, `told` what the server does; edits are what takes one to the other, and a
// reconnect or a list that no URL could hold need nothing more.
(() => {
  "use strict";

  // Longest query put into the URL, well below the 8 KiB that servers and proxies take; the rest follows as edits.
  const QUERY_CHARS_MAX = 4000;
  const EDIT_USERS_MAX = 1000;
  const BACKOFF_MS_MIN = 1000;
  const BACKOFF_MS_MAX = 30000;

  const EVENTS = ["open", "presence", "snapshot", "disconnect", "overloaded", "goodbye", "error", "close"];

  class Greendot {
    #base;
    #user;
    #wanted = new Set();
    #told = new Set();
    #urlUsers = [];
    #records = new Map();
    #listeners = new Map(EVENTS.map((kind) => [kind, new Set()]));
    #source = null;
    #stream = null;
    #lastEventId = "";
    // Whose changes #lastEventId counts: those told when it came.
    #covered = new Set();
    #editing = false;
    #failures = 0;
    #timer = null;
    #closed = false;
    #EventSource;
    #fetch;

    // url: where the server is; "" for the page's own origin. options: user (be online as), watch (users),
    // and for tests EventSource and fetch.
    constructor(url, options = {}) {
      this.#base = String(url ?? "").replace(/\/+$/, "");
      this.#user = options.user ?? null;
      this.#EventSource = options.EventSource ?? globalThis.EventSource;
      this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
      for (const user of options.watch ?? []) this.#wanted.add(user);
      this.#connect();
    }

    // Calls `listener` at each event of that kind; returns the function that ends this.
    //   open(hello)  presence(record, before)  snapshot(records)  disconnect()  overloaded({reason})  goodbye({reason})
    //   error({status, detail})  close()
    on(kind, listener) {
      const listeners = this.#listeners.get(kind);
      if (!listeners) throw new RangeError(`no such event: ${kind}; there are ${EVENTS.join(", ")}`);
      listeners.add(listener);
      return () => listeners.delete(listener);
    }

    watch(...users) {
      for (const user of users) this.#wanted.add(user);
      this.#edit();
    }

    unwatch(...users) {
      for (const user of users) this.#wanted.delete(user);
      this.#edit();
    }

    // What is known of a user who is watched; undefined before the first answer.
    get(user) {
      return this.#wanted.has(user) ? this.#records.get(user) : undefined;
    }

    get watching() {
      return [...this.#wanted];
    }

    // Ends the stream for good. If it made somebody online, the server sees them go when their beats end.
    close() {
      if (this.#closed) return;
      this.#closed = true;
      clearTimeout(this.#timer);
      this.#source?.close();
      this.#source = null;
      this.#stream = null;
      this.#emit("close");
    }

    #emit(kind, ...values) {
      for (const listener of [...this.#listeners.get(kind)]) listener(...values);
    }

    #connect() {
      // Who resumes is told only of changes since the id: users whom it does not count are added by an edit, which brings their state.
      const resumes = this.#lastEventId !== "";
      const query = new URLSearchParams();
      if (this.#user !== null) query.append("user", this.#user);
      if (resumes) query.append("last_event_id", this.#lastEventId);
      this.#urlUsers = [];
      let chars = query.toString().length;
      for (const user of this.#wanted) {
        if (resumes && !this.#covered.has(user)) continue;
        chars += new URLSearchParams({ watch: user }).toString().length + 1;
        if (chars > QUERY_CHARS_MAX) break;
        query.append("watch", user);
        this.#urlUsers.push(user);
      }
      const source = new this.#EventSource(`${this.#base}/v1/stream?${query}`);
      this.#source = source;
      const listen = (kind, handle) =>
        source.addEventListener(kind, (event) => {
          // A source that was replaced or closed may have events in flight.
          if (source !== this.#source) return;
          handle.call(this, event.data === undefined ? undefined : JSON.parse(event.data));
          // An event without an id of its own has that of the one before.
          if (!event.lastEventId || event.lastEventId === this.#lastEventId) return;
          this.#lastEventId = event.lastEventId;
          this.#covered = new Set([...this.#told].filter((user) => this.#records.has(user)));
        });
      listen("hello", this.#hello);
      listen("snapshot", this.#snapshot);
      listen("presence", (record) => this.#apply(record));
      listen("overloaded", (said) => this.#emit("overloaded", said));
      listen("goodbye", (said) => this.#emit("goodbye", said));
      source.addEventListener("error", () => source === this.#source && this.#lost(source));
    }

    #hello(hello) {
      this.#failures = 0;
      this.#stream = hello.stream;
      this.#told = new Set(this.#urlUsers);
      for (const user of [...this.#records.keys()]) if (!this.#wanted.has(user)) this.#records.delete(user);
      this.#emit("open", hello);
      this.#edit();
    }

    #snapshot({ presence }) {
      for (const record of presence) this.#apply(record);
      this.#emit("snapshot", presence);
    }

    #apply(record) {
      // An edit may cross with what was already on its way. Whoever is still told stays known, if nobody hears of it: to
      // watch them again may need no edit, and then brings no state.
      const wanted = this.#wanted.has(record.user);
      if (!wanted && !this.#told.has(record.user)) return;
      const before = this.#records.get(record.user);
      if (before && (before.since ?? 0) > (record.since ?? 0)) return;
      // Another node's not knowing yet takes back nothing.
      if (before && record.status === "unknown") return;
      this.#records.set(record.user, record);
      const same = before && before.status === record.status && before.since === record.since;
      if (wanted && !same) this.#emit("presence", record, before);
    }

    #lost(source) {
      this.#stream = null;
      this.#emit("disconnect");
      // CONNECTING: the browser tries again by itself, after the server's `retry`. CLOSED: it never will.
      if (this.#closed || source.readyState !== 2) return;
      this.#source = null;
      this.#timer = setTimeout(() => this.#connect(), this.#backoff());
    }

    #backoff() {
      const base = Math.min(BACKOFF_MS_MIN * 2 ** Math.min(this.#failures, 10), BACKOFF_MS_MAX);
      this.#failures += 1;
      return base * (0.75 + Math.random() / 2);
    }

    // Takes the server's watch list to the wanted one, one request at a time.
    async #edit() {
      if (this.#editing) return;
      this.#editing = true;
      try {
        while (this.#stream !== null && !this.#closed) {
          const add = [...this.#wanted].filter((user) => !this.#told.has(user)).slice(0, EDIT_USERS_MAX);
          const remove = [...this.#told].filter((user) => !this.#wanted.has(user)).slice(0, EDIT_USERS_MAX);
          if (add.length + remove.length === 0) return;
          if (!(await this.#send(this.#stream, { add, remove }))) return;
        }
      } finally {
        this.#editing = false;
      }
    }

    // True if there may be more to send now.
    async #send(stream, edit) {
      let status = 0;
      let detail = "no answer";
      try {
        const answer = await this.#fetch(`${this.#base}/v1/stream/${encodeURIComponent(stream)}/watch`, {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(edit),
        });
        status = answer.status;
        if (!answer.ok) detail = (await answer.json().catch(() => ({}))).detail ?? answer.statusText;
      } catch (error) {
        detail = String(error);
      }
      // Another stream has begun meanwhile: its `hello` has set `told` anew.
      if (stream !== this.#stream) return true;
      if (status >= 200 && status < 300) {
        for (const user of edit.add) this.#told.add(user);
        for (const user of edit.remove) {
          this.#told.delete(user);
          this.#records.delete(user);
        }
        return true;
      }
      // 404: the stream has ended, and its end is on the way here; the next `hello` brings everything.
      if (status !== 404) this.#emit("error", { status, detail });
      const again = status === 0 || status === 429 || status >= 500;
      if (again) this.#timer = setTimeout(() => this.#edit(), this.#backoff());
      return false;
    }
  }

  globalThis.Greendot = Greendot;
})();
