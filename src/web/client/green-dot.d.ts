import type { Greendot, State, Status } from "./client.js";

/**
 * `<green-dot user="bob">Bob</green-dot>`: a dot, the words for it, and how long ago he was active.
 *
 * Attributes: `user`; `url`, where greendot is (default: where this file comes from). It gives
 * itself `status` and `stale`. Parts: `dot`, `words`. Variables: `--green-dot-size`,
 * `--green-dot-online`, `-away`, `-busy`, `-offline`, `-words`. It fires `change`.
 */
export declare class GreenDot extends HTMLElement {
  /** What is shown; set words of your language in their place. */
  static words: Record<Status, string> & {
    active(ago: string): string;
    stale(words: string): string;
  };
  /** By whose stream all elements without a `url` are told. Without one they open their own. */
  static client: Greendot | null;
  /** By whose stream this one is told, before all else. */
  client: Greendot | null;
  /** Whose dot it is. */
  user: string;
  /** What is known of the user; undefined before the first answer. */
  readonly state: State | undefined;
}

declare global {
  interface HTMLElementTagNameMap {
    "green-dot": GreenDot;
  }
}
