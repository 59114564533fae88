// What the tests of the client have in the place of a browser.

export class FakeSource {
  static all = [];
  static get last() {
    return FakeSource.all.at(-1);
  }

  constructor(url) {
    this.url = new URL(url);
    this.readyState = 0;
    this.listeners = {};
    FakeSource.all.push(this);
  }

  addEventListener(kind, listener) {
    (this.listeners[kind] ??= []).push(listener);
  }

  close() {
    this.readyState = 2;
  }

  say(kind, data, lastEventId = "") {
    const event = { data: data === undefined ? undefined : JSON.stringify(data), lastEventId };
    for (const listener of this.listeners[kind] ?? []) listener(event);
  }

  // `lastEventId`: some browsers go on with a former stream's.
  hello(stream, watching, lastEventId = "") {
    this.readyState = 1;
    this.say("hello", { stream, watching }, lastEventId);
  }

  ping() {
    this.say("ping", Date.now());
  }

  fail(readyState) {
    this.readyState = readyState;
    this.say("error");
  }
}

export const settle = () => new Promise((done) => setImmediate(done));
export const record = (user, status, since) => {
  const online = ["online", "away", "busy"].includes(status);
  return { user, status, online, since, last_active: since };
};
