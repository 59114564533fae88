// Presence in React: a provider for a part of the page, and hooks below it.

import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useLayoutEffect,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";
import { Greendot } from "@greendot/client";

const Context = createContext(null);

export function GreendotProvider({ url, user, token, onError, children }) {
  const [client, setClient] = useState(null);
  // The latest ones: another function is no reason for another stream.
  const given = useRef({});
  given.current = { token, onError };
  const isAsked = Boolean(token);
  useEffect(() => {
    const options = { url, user, token: isAsked ? () => given.current.token() : undefined };
    const client = new Greendot(options);
    client.on("error", (error) => {
      if (given.current.onError) given.current.onError(error);
      else console.warn(`greendot: ${error.message}`);
    });
    setClient(client);
    return () => client.close();
  }, [url, user, isAsked]);
  return createElement(Context.Provider, { value: client }, children);
}

// Null in the first rendering: a stream begins with the page, not before.
export function useGreendot() {
  return useContext(Context);
}

export function usePresence(user) {
  const client = useGreendot();
  const subscribe = useCallback(
    (changed) => (client === null ? () => {} : client.watch(user, changed)),
    [client, user],
  );
  return useSyncExternalStore(
    subscribe,
    () => client?.get(user),
    () => undefined,
  );
}

export function GreenDot({ user, children, ...props }) {
  const client = useGreendot();
  const element = useRef(null);
  useEffect(() => {
    // The element is of the browser alone.
    import("@greendot/client/green-dot.js");
  }, []);
  // Before the element asks whom it is told by.
  useLayoutEffect(() => {
    if (client) element.current.client = client;
  }, [client]);
  const shown = client ? { user } : {};
  return createElement("green-dot", { ...props, ...shown, ref: element }, children);
}
