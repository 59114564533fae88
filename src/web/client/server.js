import { later } from "./page.js";

export const ASK_MS_MAX = 10000;

// What asks a server: the status is 0 if there is no answer in time.
export class Server {
  constructor({ url, token = null, fetch = globalThis.fetch.bind(globalThis) }) {
    this.base = String(url).replace(/\/+$/, "");
    this.token = token;
    this.fetch = fetch;
  }

  // `json` is the body. The token goes with what is posted.
  async ask(path, init = {}, ms = ASK_MS_MAX, abort = new AbortController()) {
    const { json, ...rest } = { method: "POST", ...init };
    const gone = new Promise((_, fail) =>
      abort.signal.addEventListener("abort", () => fail(new Error("no answer in time"))),
    );
    gone.catch(() => {});
    const timer = later(() => abort.abort(), ms);
    try {
      const headers = {};
      if (json) {
        headers["Content-Type"] = "application/json";
        rest.body = JSON.stringify(json);
      }
      if (this.token !== null && rest.method === "POST") {
        // A page that goes away can wait for none.
        if (!rest.keepalive) this.last = await Promise.race([this.token(), gone]);
        headers.Authorization = `Bearer ${this.last}`;
      }
      // Some do not end when they are told to.
      const asked = this.fetch(this.base + path, { ...rest, headers, signal: abort.signal });
      const answer = await Promise.race([asked, gone]);
      // Of another origin's answer only its coming is seen.
      if (answer.type === "opaque") return { status: 200 };
      const { ok, status, statusText = "" } = answer;
      const isBare = ok && (status !== 200 || !answer.json);
      const body = isBare ? {} : await Promise.race([answer.json().catch(() => ({})), gone]);
      return { ok, status, detail: body.detail ?? statusText, body };
    } catch (error) {
      return { status: 0, detail: String(error) };
    } finally {
      clearTimeout(timer);
    }
  }
}
