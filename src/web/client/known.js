// What is known of those who are watched, and whose word it is.
//
// `wanted` is whom the application watches, `told` whom the server does (edits.js takes one to the
// other). A stream's word may be older than a former one's: it comes from a node that has heard
// less. docs/PROTOCOL.md, "Which state holds".

export class Known {
  wanted;
  told = new Set();
  // Of `told`, those of whom nothing is known and nothing comes: the id does not count them.
  untold = new Set();
  lastEventId = "";
  // Nothing is heard: what is not this stream's word is the last known.
  stale = false;
  #tell;
  // What is shown.
  #records;
  // Whose shown record is this stream's word, not a former one's.
  #ours = new Set();
  // This stream's word on users of whom a former one told something newer.
  #held = new Map();
  // Whose changes `lastEventId` counts: those told when it came.
  #covered = new Set();
  // Of whom this stream has told since then: its next id counts them.
  #heard = new Set();

  // `tell` is called with "presence", record   "stale"   "live"
  constructor(wanted, records, tell) {
    this.wanted = new Set(wanted);
    this.#records = new Map(records);
    this.#tell = tell;
  }

  // Whom another stream told of is known, as long as this one says nothing.
  add(records) {
    for (const record of records)
      if (!this.#records.has(record.user)) this.#records.set(record.user, record);
  }

  // The state of a user as it is shown: the last known, or what is. Undefined before the first
  // answer.
  get(user) {
    const record = this.#records.get(user);
    return record && this.stale && !this.#ours.has(user) ? { ...record, stale: true } : record;
  }

  // Whether a stream that resumes is told of this user's changes.
  counts(user) {
    return this.lastEventId === "" || this.#covered.has(user);
  }

  // A stream has begun that watches these.
  begin(users) {
    for (const user of [...this.#records.keys()]) if (!this.wanted.has(user)) this.forget(user);
    this.told = new Set(users);
    this.untold = new Set(users.filter((user) => !this.counts(user)));
    this.#covered = new Set(users.filter((user) => this.#covered.has(user)));
    this.#ours.clear();
    this.#held.clear();
    this.#heard.clear();
  }

  // Within a stream the last word counts. The next stream may come from a node that has heard less:
  // what is older than a former stream's word waits for the stream's next id.
  apply(record) {
    const user = record.user;
    // Whoever is still told stays known, if nobody hears of it: to watch them again may need no
    // edit, and then brings no state.
    if (!this.wanted.has(user) && !this.told.has(user)) return;
    const before = this.#records.get(user);
    this.#held.delete(user);
    // Another node's not knowing yet takes back nothing.
    if (before && record.status === "unknown") return;
    this.untold.delete(user);
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
  toldUpTo(id) {
    this.lastEventId = id;
    // Of whom an edit has yet to be answered may have been told before it.
    for (const user of this.#heard) {
      if (!this.told.has(user)) continue;
      this.#heard.delete(user);
      this.#covered.add(user);
    }
    for (const [user, record] of this.#held) {
      if (!((this.#records.get(user).since ?? 0) <= Number(id))) continue;
      this.#held.delete(user);
      this.#show(record);
    }
  }

  becomeStale() {
    if (this.stale) return;
    this.#changing("stale", () => {
      this.stale = true;
      this.#ours.clear();
    });
  }

  // The stream has told all that it has to: what it did not tell is as it was.
  becomeLive() {
    if (this.stale) this.#changing("live", () => (this.stale = false));
  }

  forget(user) {
    for (const known of [this.#records, this.#ours, this.#held, this.#covered, this.#heard])
      known.delete(user);
  }

  #show(record) {
    const before = this.get(record.user);
    this.#records.set(record.user, record);
    this.#ours.add(record.user);
    const isSame =
      before &&
      !before.stale === !record.stale &&
      before.status === record.status &&
      before.since === record.since;
    if (this.wanted.has(record.user) && !isSame) this.#tell("presence", record);
  }

  // Tells of those whose state is shown otherwise than before.
  #changing(kind, change) {
    const shown = [...this.wanted].map((user) => [user, this.get(user)]);
    change();
    this.#tell(kind);
    for (const [user, before] of shown) {
      const record = this.get(user);
      if (before && record !== before && this.wanted.has(user)) this.#tell("presence", record);
    }
  }
}
