// The element <green-dot> in a real browser: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { launch, serve, site, skip, until } from "./harness.mjs";

let server, browser, pages;

before(async () => {
  if (skip) return;
  [server, browser] = [await serve(), await launch()];
  const page = (more) => `<!doctype html><html lang="en"><title>dots</title>
    <script type="module" src="${server.url}/green-dot.js"></script>${more}`;
  pages = await site({
    "/": page(`<green-dot user="bob">Bob</green-dot> <green-dot user="carol"></green-dot>`),
    "/words": page(`<p lang="de"><green-dot user="gone" id="de">G</green-dot>
      <p lang="ar" dir="rtl"><green-dot user="gone" id="ar">G</green-dot>`),
  });
});

after(async () => {
  await browser?.close();
  pages?.close();
  await server?.close();
});

// What the element at `selector` shows, says and looks like.
const seen = (page, selector) =>
  page.locator(selector).evaluate((element) => {
    const [dot, words] = ["dot", "words"].map((part) =>
      element.shadowRoot.querySelector(`[part=${part}]`),
    );
    const { backgroundColor, borderStyle, borderRadius } = getComputedStyle(dot);
    return {
      status: element.getAttribute("status"),
      stale: element.hasAttribute("stale"),
      words: words.textContent,
      label: element.ariaLabel,
      dot: [backgroundColor, borderStyle, borderRadius],
    };
  });

const shows = (page, selector, status) =>
  until(`${selector} is ${status}`, async () => (await seen(page, selector)).status === status);

const say = (user, said) =>
  fetch(`${server.url}/v1/status`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ user, ...said }),
  });

const leave = (user) =>
  fetch(`${server.url}/v1/leave`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ users: [user] }),
  });

test("dot, words and label are those of the state", { skip }, async () => {
  const page = await browser.newPage({ reducedMotion: "reduce" });
  await page.goto(pages.url);
  await shows(page, "[user=bob]", "offline");
  const none = "rgba(0, 0, 0, 0)";
  const round = "50%";
  const dots = new Set();
  const look = async (status, words, dot) => {
    await shows(page, "[user=bob]", status);
    const { label, ...shown } = await seen(page, "[user=bob]");
    assert.deepEqual(shown, { status, stale: false, words, dot });
    assert.equal(label, `Bob: ${words}`);
    const picture = await page.locator("[user=bob]").screenshot();
    dots.add(picture.toString("base64"));
  };
  await look("offline", "offline", [none, "solid", round]);
  await server.beat("bob");
  await look("online", "online", ["rgb(26, 127, 55)", "solid", round]);
  await say("bob", { status: "away" });
  await look("away", "away", [none, "solid", round]);
  await say("bob", { status: "busy" });
  await look("busy", "busy", ["rgb(207, 34, 46)", "solid", "15%"]);
  await leave("bob");
  await look("offline", "active 1 sec. ago", [none, "solid", round]);
  assert.equal(dots.size, 5);
  const role = await page.locator("[user=bob]").evaluate((element) => element.role);
  assert.equal(role, "img");
  // Without a name of its own it has the user's; both are told by one stream.
  assert.equal((await seen(page, "[user=carol]")).label, "carol: offline");
  await until("there is one", async () => (await server.sum("greendot_streams")) === 1);
  await page.close();
});

test("another user, another client, another look", { skip }, async () => {
  const page = await browser.newPage();
  await page.goto(pages.url);
  await server.beat("dave");
  await page.locator("[user=carol]").evaluate((element) => {
    element.id = "one";
    element.user = "dave";
    element.style.setProperty("--green-dot-online", "rgb(1, 2, 3)");
  });
  await shows(page, "#one", "online");
  await page.waitForTimeout(400);
  assert.equal((await seen(page, "#one")).dot[0], "rgb(1, 2, 3)");
  // From here on the page's own client tells: the one of before watches nobody.
  await page.evaluate(async (url) => {
    const { Greendot } = await import(`${url}/client.js`);
    const { GreenDot } = await import(`${url}/green-dot.js`);
    GreenDot.client = new Greendot({ url, user: "me-too" });
  }, server.url);
  await until("it has a stream", async () => (await server.status("me-too")).online);
  await shows(page, "#one", "online");
  await until("two are watched, by it alone", async () => {
    return (await server.sum("greendot_watches")) === 2;
  });
  await page.evaluate(() => document.querySelectorAll("green-dot").forEach((dot) => dot.remove()));
  await until("nobody is", async () => (await server.sum("greendot_watches")) === 0);
  await page.close();
});

test("how long ago is told in the page's language, and goes on", { skip }, async () => {
  const page = await browser.newPage();
  await page.clock.install();
  await page.goto(`${pages.url}/words`);
  // A client of the test's own, whose server's clock is in its hands.
  await page.evaluate(async (url) => {
    const { GreenDot } = await import(`${url}/green-dot.js`);
    window.agoMs = 0;
    const state = { status: "offline", online: false, stale: false, lastActive: 1e12 };
    GreenDot.client = { now: () => 1e12 + agoMs, get: () => state, watch: () => () => {} };
    GreenDot.words.active = (ago) => `zuletzt ${ago}`;
  }, server.url);
  for (const [agoMs, words] of [
    [0, "zuletzt vor 1 Sek."],
    [59_000, "zuletzt vor 50 Sek."],
    [60_000, "zuletzt vor 1 Min."],
    [330_000, "zuletzt vor 5 Min."],
    [2 * 3_600_000, "zuletzt vor 2 Std."],
    [26 * 3_600_000, "zuletzt gestern"],
  ]) {
    await page.evaluate((ms) => (window.agoMs = ms), agoMs);
    await page.clock.runFor(10_100);
    assert.equal((await seen(page, "#de")).words, words);
  }
  assert.match((await seen(page, "#ar")).words, /^zuletzt \p{Script=Arabic}+$/u);
  // The dot stands where reading begins.
  const [dot, words] = await page
    .locator("#ar")
    .evaluate((element) =>
      ["dot", "words"].map(
        (part) => element.shadowRoot.querySelector(`[part=${part}]`).getBoundingClientRect().x,
      ),
    );
  assert.ok(dot > words, `${dot} ${words}`);
  await page.close();
});

test("what is the last known is not shown as if it were so", { skip }, async () => {
  const doomed = await serve();
  const page = await browser.newPage();
  await page.goto(pages.url);
  await doomed.beat("erin");
  await page.locator("[user=bob]").evaluate((element, url) => {
    element.id = "one";
    element.setAttribute("url", url);
    element.user = "erin";
  }, doomed.url);
  await shows(page, "#one", "online");
  await doomed.close();
  await page.evaluate(() => dispatchEvent(new Event("offline")));
  await until("it is stale", async () => (await seen(page, "#one")).stale);
  const { words, dot } = await seen(page, "#one");
  assert.deepEqual([words, dot[1]], ["online (last known)", "dotted"]);
  await page.close();
});
