import type { HTMLAttributes, ReactElement, ReactNode } from "react";
import type { Greendot, GreendotError, Options, State } from "@greendot/client";

export interface ProviderProps extends Pick<Options, "url" | "user" | "token"> {
  /** Without it errors are warnings in the console. */
  onError?: (error: GreendotError) => void;
  children?: ReactNode;
}

/** Opens a stream for the components below it, and closes it with them. */
export declare function GreendotProvider(props: ProviderProps): ReactElement;

/** The client of the provider above; null in the first rendering, and on a server. */
export declare function useGreendot(): Greendot | null;

/** The state of a user, who is watched while the component stands; undefined before the answer. */
export declare function usePresence(user: string): State | undefined;

/** The `<green-dot>` element, told by the provider's client. */
export declare function GreenDot(
  props: HTMLAttributes<HTMLElement> & { user: string },
): ReactElement;
