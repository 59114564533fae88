// Edits, by which the server watches whom the application does.
//
// A reconnecting EventSource repeats its first URL, so after each hello all that is missing is put
// back. One edit at a time; what the server refuses is found out and given up.

import { isPassing } from "./page.js";
import { ASK_MS_MAX } from "./server.js";

const USERS_MAX = 1000;

export class Edits {
  #server;
  #known;
  #backoff;
  #tell;
  #stream = null;
  #editing = false;
  // The edit whose outcome is not certain.
  #sent = null;
  // An edit was refused: removals go alone, and so many are added at once.
  #refused = false;
  #addMax = USERS_MAX;
  #timer = null;
  #abort = null;

  // `tell` is called with "error", {status, detail, users}
  // users: whom the server refuses to let us watch; they are not watched any more.
  constructor(server, known, backoff, tell) {
    this.#server = server;
    this.#known = known;
    this.#backoff = backoff;
    this.#tell = tell;
  }

  // A stream has begun: what it watches is known.
  begin(stream) {
    this.#stream = stream;
    this.#sent = null;
    this.#refused = false;
    this.#addMax = USERS_MAX;
    this.edit();
  }

  // It has ended: what is under way for it is of no use.
  end() {
    this.#stream = null;
    clearTimeout(this.#timer);
    this.#abort?.abort();
  }

  // What may have happened or not is sent again as it was: what the server watches is certain only
  // then.
  async edit() {
    if (this.#editing) return;
    this.#editing = true;
    try {
      while (this.#stream !== null) {
        this.#sent ??= this.#next();
        if (this.#sent === null || !(await this.#send(this.#stream, this.#sent))) return;
      }
    } finally {
      this.#editing = false;
    }
  }

  #next() {
    const { told, untold, wanted } = this.#known;
    const remove = [...told].filter((user) => !wanted.has(user)).slice(0, USERS_MAX);
    const missing = [...wanted].filter((user) => !told.has(user) || untold.has(user));
    const add = this.#refused && remove.length > 0 ? [] : missing.slice(0, this.#addMax);
    return add.length + remove.length === 0 ? null : { add, remove };
  }

  // True if there may be more to send now.
  async #send(stream, edit) {
    const { told, untold } = this.#known;
    const abort = (this.#abort = new AbortController());
    const path = `/v1/stream/${encodeURIComponent(stream)}/watch`;
    const { ok, status, detail } = await this.#server.ask(path, { json: edit }, ASK_MS_MAX, abort);
    // Another stream has begun meanwhile: its `hello` has set `told` anew.
    if (stream !== this.#stream) return true;
    // 404: the stream has ended, and the next `hello` brings everything. Or a balancer has sent
    // this to another node, and may send the next one elsewhere.
    if (status === 404 || isPassing(status)) {
      this.#timer = setTimeout(() => this.edit(), this.#backoff.next());
      if (status !== 404) this.#tell("error", { status, detail });
      return false;
    }
    this.#sent = null;
    if (ok) {
      this.#addMax = Math.min(this.#addMax * 2, USERS_MAX);
      for (const user of edit.add) {
        told.add(user);
        untold.delete(user);
      }
      for (const user of edit.remove) {
        told.delete(user);
        untold.delete(user);
        this.#known.forget(user);
      }
      return true;
    }
    if ([400, 403, 413].includes(status) && edit.add.length > 0) {
      this.#narrow(edit, { status, detail });
      return true;
    }
    this.#tell("error", { status, detail });
    return false;
  }

  // The server refuses an edit for somebody in it, or for their number: finds out who can be
  // watched, and gives up the others.
  #narrow(edit, refusal) {
    const { told, wanted } = this.#known;
    this.#refused = true;
    // Again without the additions, which may need the room.
    if (edit.remove.length > 0) return;
    if (edit.add.length > 1) {
      this.#addMax = Math.ceil(edit.add.length / 2);
      return;
    }
    // 413: not even one more, whoever it is.
    const users = refusal.status === 413 ? [...wanted].filter((user) => !told.has(user)) : edit.add;
    for (const user of users) {
      wanted.delete(user);
      this.#known.forget(user);
    }
    this.#tell("error", { ...refusal, users });
  }
}
