// What the client asks of its surroundings: timers, events, users' ids, and when to ask again.

// Keeps no program running.
export function later(call, ms) {
  const timer = setTimeout(call, ms);
  timer.unref?.();
  return timer;
}

// Listens to the page, where there is one; returns what ends that.
export function listen(kind, listener) {
  const isOfPage = ["visibilitychange", "freeze", "resume"].includes(kind);
  const target = isOfPage ? globalThis.document : globalThis;
  target?.addEventListener?.(kind, listener);
  return () => target?.removeEventListener?.(kind, listener);
}

// Throws for what can be nobody's id: the server would refuse a whole list for it.
export function check(user) {
  const isUser =
    typeof user === "string" &&
    !/^$|[\p{Cc}\p{Cs}]/u.test(user) &&
    new TextEncoder().encode(user).length <= 128;
  const rule = "1 to 128 bytes of UTF-8 without control characters";
  if (!isUser) throw new RangeError(`${JSON.stringify(user)} is no user: ${rule}`);
}

const BACKOFF_MS_MIN = 1000;
const BACKOFF_MS_MAX = 30000;
// More are counted as so many.
export const FAILURES_MAX = 12;

// How long to wait after each failure in a row.
export class Backoff {
  failures = 0;

  next() {
    const base = Math.min(BACKOFF_MS_MIN * 2 ** this.failures, BACKOFF_MS_MAX);
    this.failures = Math.min(this.failures + 1, FAILURES_MAX);
    return base * (0.75 + Math.random() / 2);
  }
}

// Whether it may go better later.
export const isPassing = (status) => [0, 408, 429].includes(status) || status >= 500;
