// An EventSource over fetch, for where there is none, as in Node (WHATWG HTML, "Server-sent
// events"). It has what the client uses of one.

export class EventSource {
  // 0: it connects, by itself again and again. 1: it is open. 2: it is closed for good.
  readyState = 0;
  #url;
  #fetch;
  #listeners = new Map();
  #abort = new AbortController();
  #retryMs = 3000;
  #lastEventId = "";

  constructor(url, { fetch = globalThis.fetch } = {}) {
    this.#url = url;
    this.#fetch = fetch;
    this.#run();
  }

  addEventListener(kind, listener) {
    this.#listeners.set(kind, [...(this.#listeners.get(kind) ?? []), listener]);
  }

  close() {
    this.readyState = 2;
    this.#abort.abort();
  }

  async #run() {
    while (this.readyState !== 2) {
      try {
        const headers = { Accept: "text/event-stream" };
        if (this.#lastEventId) headers["Last-Event-ID"] = this.#lastEventId;
        const { signal } = this.#abort;
        const answer = await this.#fetch(this.#url, { headers, signal, cache: "no-store" });
        const type = answer.headers.get("Content-Type") ?? "";
        if (answer.status !== 200 || !type.startsWith("text/event-stream")) {
          this.close();
          this.#tell("error", {});
          return;
        }
        this.readyState = 1;
        this.#tell("open", {});
        await this.#read(answer.body);
      } catch {
        // It is lost, or was closed.
      }
      if (this.readyState === 2) return;
      this.readyState = 0;
      this.#tell("error", {});
      await new Promise((done) => setTimeout(done, this.#retryMs));
    }
  }

  async #read(body) {
    const decoder = new TextDecoder();
    let rest = "";
    let event = {};
    for await (const bytes of body) {
      rest += decoder.decode(bytes, { stream: true });
      // A CR at the end may be half of a line's end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line !== "") {
          this.#take(line, event);
        } else {
          if (event.data !== undefined)
            this.#tell(event.kind || "message", {
              data: event.data,
              lastEventId: this.#lastEventId,
            });
          event = {};
        }
      }
    }
  }

  #take(line, event) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") event.kind = value;
    if (name === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
    if (name === "id" && !value.includes("\0")) this.#lastEventId = value;
    if (name === "retry" && /^\d+$/.test(value)) this.#retryMs = Number(value);
  }

  #tell(kind, event) {
    for (const listener of this.#listeners.get(kind) ?? []) listener(event);
  }
}
