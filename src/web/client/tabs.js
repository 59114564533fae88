// Which of the tabs of an origin leads, and what they say to each other.
//
// Whose tab holds the lock of the name leads. The others ask a leader that is not heard, and steal
// the lock of one that does not answer. Each tab holds a lock of its own too, for which the leader
// waits: so it learns of the end of one that could not say it. Where there are no locks, each tab
// leads itself.

import { later } from "./page.js";

const TICK_MS = 1000;
// Questions in a row that a leader has not answered.
const SILENT_MAX = 2;

export class Tabs {
  leads = false;
  #name;
  #on;
  #id = String(Math.random());
  #channel = null;
  // Ends with this tab's part in it, and with its lead or its waiting for it.
  #life = new AbortController();
  #abort = null;
  #timer;
  #leader = null;
  #heard = false;
  #silent = 0;

  // `on`: `lead` and `resign`, when this tab begins and ends to; `hear`, for what others send, and
  // `{led: true}` when another leads from now on.
  constructor(name, on) {
    this.#name = name;
    this.#on = on;
    if (!globalThis.document || !navigator.locks) {
      if (globalThis.document)
        console.warn("greendot: no Web Locks without HTTPS: a stream for each tab");
      this.leads = true;
      queueMicrotask(() => on.lead());
      return;
    }
    // Nothing is said before the lock is held: who is not there would be taken for gone.
    const { signal } = this.#life;
    this.#hold(this.#id, signal, () => {
      this.#channel = new BroadcastChannel(name);
      this.#channel.onmessage = ({ data }) => this.#hear(data);
      this.#wait();
      this.send({ ask: true });
      this.#tick();
      return ended(signal);
    });
  }

  send(message) {
    this.#channel?.postMessage({ ...message, from: this.#id });
  }

  // The end of this tab is heard of as long as this one leads, whether it can say so or not.
  follow(from) {
    this.#hold(from, this.#abort.signal, () => this.#on.hear({ from, gone: true }));
  }

  close() {
    this.leads = false;
    clearTimeout(this.#timer);
    this.#life.abort();
    this.#abort?.abort();
    this.#channel?.close();
    this.#channel = null;
  }

  // Waits for a lock. Nobody minds if it is waited for no more, or stolen.
  #hold(of, signal, call, options = { signal }) {
    return navigator.locks
      .request(`${this.#name} ${of}`, options, () => signal.aborted || call())
      .catch(() => {});
  }

  async #wait(options) {
    this.#abort?.abort();
    const { signal } = (this.#abort = new AbortController());
    const lead = () => {
      this.leads = true;
      this.send({ lead: true });
      this.#on.lead();
      return ended(signal);
    };
    await this.#hold("", signal, lead, options);
    if (signal.aborted) return;
    this.leads = false;
    this.#on.resign();
    this.#wait();
  }

  #hear(message) {
    const { from, ask, lead } = message;
    if (ask && this.leads) return this.send({ lead: true });
    if (lead && !this.leads && from !== this.#leader) {
      this.#leader = from;
      this.#on.hear({ led: true });
    }
    if (from === this.#leader) this.#heard = true;
    if (!ask && !lead && (!message.news || from === this.#leader)) this.#on.hear(message);
  }

  #tick() {
    this.#timer = later(() => this.#tick(), TICK_MS);
    if (this.leads) return;
    if (this.#heard) this.#silent = 0;
    else if (this.#silent >= SILENT_MAX) this.#wait({ steal: true });
    else this.#silent += 1;
    if (!this.#heard) this.send({ ask: true });
    this.#heard = false;
  }
}

const ended = (signal) => new Promise((end) => signal.addEventListener("abort", end));
