/** What a user is. `unknown`: a node of a split deployment has not asked yet. */
export type Status = "online" | "away" | "busy" | "offline" | "unknown";

/** What is known of a user. */
export interface State {
  readonly user: string;
  readonly status: Status;
  /** Whether the user is here: `online`, `away` or `busy`. */
  readonly online: boolean;
  /** Nothing is heard from the server: this is the last state known. Draw no green dot from it. */
  readonly stale: boolean;
  /** When the user came or went, Unix ms; null if they were never seen. */
  readonly since: number | null;
  /** When the user was last active, Unix ms; null if they were never seen. A stream tells it when
   * the status changes, and not at each beat. */
  readonly lastActive: number | null;
}

export interface GreendotError extends Error {
  readonly name: "GreendotError";
  /** What was wrong, and what to do. */
  readonly message: string;
  /** Of the server's answer; 0 if there was none. */
  readonly status: number;
  /** Whom the server does not let this client watch; they are not watched any more. */
  readonly users: readonly string[];
}

export interface Options {
  /** Where greendot is: `https://presence.example.com`. Default: the page's own origin. */
  url?: string;
  /** Who is online by this client, for as long as its page answers. With a token also `"me"`, whom
   * the token names. Without a user it only watches. */
  user?: string | null;
  /** Gives the user's token, as your backend signs it. It is asked before each call, so that it
   * may give a fresh one. */
  token?: () => string | Promise<string>;
  /** Gives a ticket for a stream, where your backend makes them. Default: it is made of `token`. */
  ticket?: () => string | Promise<string>;
  /** Who says that the user is here: this page by answering the server's pings (`self`, the
   * default), or its open connection alone (`stream`). */
  vouch?: "self" | "stream";
  /** Says for how long nobody has touched any tab: from the server's `--away-after` on the user is
   * away, if that is so on all their devices. Default: false. */
  idle?: boolean;
  /** In the place of the global one. */
  EventSource?: new (url: string) => EventSource;
  /** In the place of the global one. */
  fetch?: typeof fetch;
}

/** A connection to greendot. All tabs of an origin that have the same `url` and `user` share one
 * stream. */
export class Greendot {
  /** Throws a `RangeError` for what can not be a user's id. */
  constructor(options?: Options);

  /**
   * Watches one user or several: `listener` is called with the state of each, and again whenever
   * it changes.
   * @returns ends it
   * @example const stop = gd.watch("bob", ({ status }) => console.log(status));
   */
  watch(users: string | readonly string[], listener?: (state: State) => void): () => void;

  /** The state of a user who is watched; undefined before the first answer. */
  get(user: string): State | undefined;

  /** Asks once, for up to 1,000 users. Rejects with a `GreendotError`. */
  query(users: string | readonly string[]): Promise<State[]>;

  /** Says what the user is, on all devices and until it is said again. */
  setStatus(status: "online" | "away" | "busy"): Promise<void>;

  /** `true`: to everybody else the user has gone. Said right after the client was made, nobody is
   * told that they were here. */
  setInvisible(invisible: boolean): Promise<void>;

  /** Says goodbye and closes, in all tabs: the user is offline at once, unless another device is
   * open. */
  leave(): Promise<void>;

  /** Ends this tab's part without a goodbye: the user is offline when nothing was heard for the
   * server's `offline_after_ms`. */
  close(): void;

  /** The server's time, Unix ms: by it `since` and `lastActive` are told. */
  now(): number;

  /** Whether the server is heard. */
  readonly live: boolean;

  /** Each change of a user who is watched. Returns what ends it. */
  on(event: "state", listener: (state: State) => void): () => void;
  /** The server is heard (`true`), or not any more. */
  on(event: "live", listener: (live: boolean) => void): () => void;
  /** What went wrong, and what to do. If nobody listens it is a warning in the console. */
  on(event: "error", listener: (error: GreendotError) => void): () => void;
}
