// What the client asks of its surroundings: timers, events, users' ids.

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
