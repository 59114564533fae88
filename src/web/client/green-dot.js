// <green-dot user="bob">Bob</green-dot>: a dot, the words for it, and how long ago Bob was active.
//
// Themable by the variables of the style below, by ::part(dot) and ::part(words), and by the
// attribute `status` that the element gives itself. The dot's shape says what its colour does.
// Words are in GreenDot.words, the language is that of the element.

import { Greendot } from "./client.js";

// So often the words are looked at again.
const TICK_MS = 10000;

const STYLE = `
:host { display: inline-flex; align-items: center; gap: .35em; }
:host([hidden]) { display: none; }
[part=dot] {
  --colour: var(--green-dot-offline, #6e7781);
  box-sizing: border-box; flex: none; inline-size: var(--green-dot-size, .7em); aspect-ratio: 1;
  border: .15em solid var(--colour); border-radius: 50%; forced-color-adjust: none;
}
:host([status=online]) [part=dot] {
  --colour: var(--green-dot-online, #1a7f37); background: var(--colour);
}
:host([status=away]) [part=dot] {
  --colour: var(--green-dot-away, #9a6700);
  background: linear-gradient(var(--colour), var(--colour)) bottom / 100% 50% no-repeat;
}
:host([status=busy]) [part=dot] {
  --colour: var(--green-dot-busy, #cf222e); border-radius: 15%; background: var(--colour);
}
:host([stale]) [part=dot] {
  --colour: GrayText; background: none; border-style: dotted; border-radius: 50%;
}
[part=words] { color: var(--green-dot-words, inherit); }
@media (prefers-reduced-motion: no-preference) {
  [part=dot] { transition: background-color .3s, border-color .3s; }
}
@media (forced-colors: active) { [part=dot] { --colour: CanvasText !important; } }
`;

const UNITS = [
  ["day", 86400000],
  ["hour", 3600000],
  ["minute", 60000],
];

const sheet = new CSSStyleSheet();
sheet.replaceSync(STYLE);

const shown = new Set();
const clients = new Map();
let ticking = null;
let chosen = null;

export class GreenDot extends HTMLElement {
  static observedAttributes = ["user", "url", "lang"];

  static words = {
    online: "online",
    away: "away",
    busy: "busy",
    offline: "offline",
    unknown: "not known yet",
    active: (ago) => `active ${ago}`,
    stale: (words) => `${words} (last known)`,
  };

  // By whose stream all elements without a `url` are told; otherwise they open one of their own.
  static get client() {
    return chosen;
  }

  static set client(client) {
    chosen = client;
    for (const element of shown) element.#follow();
  }

  #stop = null;
  #waiting = null;
  #given = null;
  #client = null;
  #words;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    const [dot, slot, words] = ["span", "slot", "span"].map((name) => document.createElement(name));
    [dot.part, words.part] = ["dot", "words"];
    root.append(dot, slot, words);
    this.#words = words;
  }

  get user() {
    return this.getAttribute("user") ?? "";
  }

  set user(user) {
    this.setAttribute("user", user);
  }

  set client(client) {
    this.#given = client;
    if (this.isConnected) this.#follow();
  }

  get client() {
    return this.#client;
  }

  get state() {
    return this.#client?.get(this.user);
  }

  connectedCallback() {
    shown.add(this);
    ticking ??= setInterval(() => shown.forEach((element) => element.#draw()), TICK_MS);
    // What was set before there was this class.
    for (const name of ["user", "client"]) {
      if (!Object.hasOwn(this, name)) continue;
      const value = this[name];
      delete this[name];
      this[name] = value;
    }
    this.role ??= "img";
    this.#follow();
  }

  disconnectedCallback() {
    shown.delete(this);
    this.#end();
    if (shown.size > 0) return;
    clearInterval(ticking);
    ticking = null;
  }

  attributeChangedCallback(name) {
    if (!this.isConnected) return;
    if (name === "lang") this.#draw();
    else this.#follow();
  }

  #end() {
    clearTimeout(this.#waiting);
    this.#stop?.();
    this.#stop = null;
  }

  // A turn later: a script may be about to say which client to use.
  #follow() {
    this.#end();
    this.#draw();
    if (!this.user) return;
    this.#waiting = setTimeout(() => {
      const url = this.getAttribute("url") ?? undefined;
      this.#client = this.#given ?? (url === undefined ? chosen : null) ?? own(url);
      this.#stop = this.#client.watch(this.user, () => {
        this.#draw();
        this.dispatchEvent(new Event("change"));
      });
      this.#draw();
    });
  }

  #draw() {
    const { words } = GreenDot;
    const state = this.state;
    const { status = "unknown", online, stale = false, lastActive } = state ?? {};
    const ago = lastActive && !online ? this.#ago(this.#client.now() - lastActive) : null;
    const text = status === "offline" && ago ? words.active(ago) : words[status];
    const said = stale ? words.stale(text) : text;
    this.setAttribute("status", status);
    this.toggleAttribute("stale", stale);
    this.#words.textContent = said;
    this.ariaLabel = `${this.textContent.trim() || this.user}: ${said}`;
  }

  #ago(ms) {
    const lang = this.closest("[lang]")?.lang || navigator.language;
    const format = new Intl.RelativeTimeFormat(lang, { numeric: "auto", style: "short" });
    const [unit, unitMs] = UNITS.find(([, unitMs]) => ms >= unitMs) ?? [];
    if (unit) return format.format(-Math.floor(ms / unitMs), unit);
    // As exact as it is looked at again; who has gone is not active "now".
    return format.format(-Math.max(1, Math.floor(ms / TICK_MS) * (TICK_MS / 1000)), "second");
  }
}

// The client of all elements that name this server; by default where this file comes from.
function own(url = new URL(import.meta.url).origin) {
  if (!clients.has(url)) clients.set(url, new Greendot({ url }));
  return clients.get(url);
}

if (!customElements.get("green-dot")) customElements.define("green-dot", GreenDot);
