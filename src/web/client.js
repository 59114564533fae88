// greendot's browser client: who is online, pushed the moment it changes.
//
//   <script src="https://presence.example.com/client.js"></script>
//   const where = "https://presence.example.com";
//   const greendot = new Greendot(where, { user: "alice", watch: ["bob"] });
//   greendot.on("presence", (record) => console.log(record.user, record.status));
//   greendot.watch("carol"); greendot.unwatch("bob"); greendot.close();
//
// A record is { user, status: "online" | "offline" | "unknown", since, last_active }, both times in
// Unix ms or null. "unknown" is what a node of a split deployment says until it has asked.
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

  const EVENTS = [
    "open",
    "presence",
    "snapshot",
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

  class Greendot {
    #base;
    #user;
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
    #timer = null;
    #closed = false;
    #EventSource;
    #fetch;

    // url: where the server is; "" for the page's own origin. options: user (be online as), watch
    // (users), and for tests EventSource and fetch. Throws a RangeError for what can not be a
    // user's id.
    constructor(url, options = {}) {
      this.#base = String(url ?? "").replace(/\/+$/, "");
      this.#user = options.user ?? null;
      this.#EventSource = options.EventSource ?? globalThis.EventSource;
      this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
      if (this.#user !== null) check(this.#user);
      for (const user of options.watch ?? []) {
        check(user);
        this.#wanted.add(user);
      }
      this.#connect();
    }

    // Calls `listener` at each event of that kind; returns the function that ends this.
    //   open(hello)  presence(record, before)  snapshot(records)  disconnect()
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
      return this.#wanted.has(user) ? this.#records.get(user) : undefined;
    }

    get watching() {
      return [...this.#wanted];
    }

    // Ends the stream for good. If it made somebody online, the server sees them go when their
    // beats end.
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
      // Who resumes is told only of changes since the id: users whom it does not count are added by
      // an edit, which brings their state.
      const resumes = this.#lastEventId !== "";
      const query = new URLSearchParams();
      if (this.#user !== null) query.append("user", this.#user);
      if (resumes) query.append("last_event_id", this.#lastEventId);
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
      let lastEventId = "";
      const listen = (kind, handle) =>
        source.addEventListener(kind, (event) => {
          // A source that was replaced or closed may have events in flight.
          if (source !== this.#source) return;
          handle.call(this, event.data === undefined ? undefined : JSON.parse(event.data));
          // An event without an id of its own has that of the one before, which after a reconnect
          // may be a former stream's.
          if (source !== this.#source || !event.lastEventId || event.lastEventId === lastEventId)
            return;
          lastEventId = event.lastEventId;
          this.#toldUpTo(lastEventId);
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
      this.#refusals = 0;
      this.#stream = hello.stream;
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

    #show(record) {
      const before = this.#records.get(record.user);
      this.#records.set(record.user, record);
      this.#ours.add(record.user);
      const same = before && before.status === record.status && before.since === record.since;
      if (this.#wanted.has(record.user) && !same) this.#emit("presence", record, before);
    }

    #forget(user) {
      for (const known of [this.#records, this.#ours, this.#held, this.#covered, this.#heard])
        known.delete(user);
    }

    #lost(source) {
      this.#stream = null;
      this.#emit("disconnect");
      // CONNECTING: the browser tries again by itself, after the server's `retry`. CLOSED: it never
      // will.
      if (this.#closed || source.readyState !== 2) return;
      this.#source = null;
      this.#refusals += 1;
      this.#timer = setTimeout(() => this.#connect(), this.#backoff());
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
      let status = 0;
      let detail = "no answer";
      try {
        const answer = await this.#fetch(
          `${this.#base}/v1/stream/${encodeURIComponent(stream)}/watch`,
          {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify(edit),
          },
        );
        status = answer.status;
        if (!answer.ok)
          detail = (await answer.json().catch(() => ({}))).detail ?? answer.statusText;
      } catch (error) {
        detail = String(error);
      }
      // Another stream has begun meanwhile: its `hello` has set `told` anew.
      if (stream !== this.#stream) return true;
      if (status === 0 || status === 408 || status === 429 || status >= 500) {
        this.#timer = setTimeout(() => this.#edit(), this.#backoff());
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
