// Which of the tabs of an origin leads, and what they say to each other.
//
// Whose tab holds the lock of the name leads. The others ask a leader that is not heard, and steal
// the lock of one that does not answer. Where there is no lock, each tab leads itself.

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
        console.warn("greendot: without HTTPS there are no Web Locks: a stream for each tab");
      this.leads = true;
      queueMicrotask(() => on.lead());
      return;
    }
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#wait();
    this.send({ ask: true });
    this.#tick();
  }

  send(message) {
    this.#channel?.postMessage({ ...message, from: this.#id });
  }

  close() {
    this.leads = false;
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#channel?.close();
    this.#channel = null;
  }

  async #wait(steal = false) {
    this.#abort?.abort();
    const { signal } = (this.#abort = new AbortController());
    const ended = new Promise((end) => signal.addEventListener("abort", end));
    try {
      await navigator.locks.request(this.#name, steal ? { steal } : { signal }, () => {
        if (signal.aborted) return;
        this.leads = true;
        this.send({ lead: true });
        this.#on.lead();
        return ended;
      });
    } catch {
      // It is waited for no more, or it was stolen.
    }
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
    else if (this.#silent >= SILENT_MAX) this.#wait(true);
    else this.#silent += 1;
    if (!this.#heard) this.send({ ask: true });
    this.#heard = false;
  }
}
