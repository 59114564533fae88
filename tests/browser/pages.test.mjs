// The dashboard and the demo in a real browser: `node --test tests/browser/`.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { axe, launch, pause, serve, site, skip, until } from "./harness.mjs";

let server, browser;

before(async () => {
  if (skip) return;
  [server, browser] = [await serve("--offline-after-ms=60000"), await launch()];
});

after(async () => {
  await browser?.close();
  await server?.close();
});

// A page in a browser of its own, and what it complained of.
async function visit(path, options = {}, of = server) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", ({ message }) => complaints.push(message));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  await page.goto(`${of.url}${path}`);
  return { page, complaints, close: () => context.close() };
}

const textOf = (page, selector) => page.locator(selector).textContent();

// What axe-core finds that is serious, as rule and place.
async function faults(page) {
  await page.evaluate(axe());
  const { violations } = await page.evaluate(() => window.axe.run());
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .flatMap(({ id, nodes }) => nodes.map(({ target }) => `${id}: ${target}`));
}

test("the dashboard's numbers are those of the metrics", { skip }, async () => {
  for (const user of ["u1", "u2", "u3"]) await server.beat(user);
  await fetch(`${server.url}/nowhere`);
  const { page, complaints, close } = await visit("/#watch=u1&watch=nobody");
  const whole = new Intl.NumberFormat("en");
  for (const [id, name] of [
    ["online", "greendot_users_online"],
    ["users", "greendot_users"],
    ["streams", "greendot_streams"],
    ["watches", "greendot_watches"],
  ]) {
    await until(`${id} is ${name}`, async () => {
      const value = await server.sum(name);
      return value > 0 && (await textOf(page, `#${id}`)) === whole.format(value);
    });
  }
  await until("rates and lines are there", async () => {
    const lines = await page
      .locator("#numbers polyline")
      .evaluateAll((all) => all.map((line) => line.getAttribute("points").length > 0));
    return lines.length === 9 && lines.filter(Boolean).length >= 7;
  });
  assert.equal(await page.locator("#rows tr").count(), 2);
  assert.match(await textOf(page, "#refusals"), /requests: 4xx/);
  assert.match(await textOf(page, "#facts"), /greendot serve \S+, 2 shards/);
  assert.match(await textOf(page, "#server"), /^serve \S+, serving$/);
  const about = await (await fetch(`${server.url}/v1/node`)).json();
  assert.equal(await page.locator("#warnings li").count(), about.warnings.length);
  assert.match(await textOf(page, "#watched"), /u1online for .*nobodynever seen/);
  assert.ok(await page.locator("#demo").isVisible());
  assert.deepEqual([await faults(page), complaints], [[], []]);
  await close();
});

test(
  "one stream makes the dashboard live, and who comes late sees the past",
  { skip },
  async () => {
    const context = await browser.newContext();
    // How many points the line of those online has when it is drawn first.
    await context.addInitScript(() => {
      const look = () => {
        const line = document.querySelector("#online ~ .past polyline");
        const points = line?.getAttribute("points");
        if (points) window.first ??= points.split(" ").length;
      };
      const all = { subtree: true, childList: true, attributes: true };
      new MutationObserver(look).observe(document, all);
    });
    // Two steps of five seconds, and now.
    await until("the server has a past", async () => {
      const page = await context.newPage();
      const asked = [];
      page.on("request", (request) => asked.push(new URL(request.url()).pathname));
      await page.goto(server.url);
      await page.waitForFunction(() => window.first);
      await page.waitForTimeout(2500);
      const figures = asked.filter((path) => /^\/(v1|metrics)/.test(path));
      // More than once, if the machine stood still meanwhile.
      assert.deepEqual([...new Set(figures)], ["/v1/node/stream"]);
      const first = await page.evaluate(() => window.first);
      await page.close();
      return first >= 3;
    });
    await context.close();
  },
);

test("without a script the dashboard has the numbers of now", { skip }, async () => {
  await server.beat("u4");
  // A shard shows a moment later what it has decided.
  await until("the page's numbers are those of the metrics", async () => {
    const { page, close } = await visit("/", { javaScriptEnabled: false });
    const shown = await Promise.all(["#online", "#users"].map((id) => textOf(page, id)));
    const sums = ["greendot_users_online", "greendot_users"].map((name) => server.sum(name));
    const counted = (await Promise.all(sums)).map(String);
    await close();
    return counted[0] > 0 && shown.join() === counted.join();
  });
});

test("on a phone nothing is wider than the page, whatever a user is called", { skip }, async () => {
  const phone = { viewport: { width: 360, height: 700 } };
  const name = "\u{1f7e2}".repeat(16) + "x".repeat(60);
  const watch = new URLSearchParams([
    ["watch", name],
    ["watch", "bob"],
  ]);
  const friends = new URLSearchParams([
    ["user", name],
    ["friends", name],
  ]);
  for (const path of [`/#${watch}`, `/demo?${friends}`, "/demo"]) {
    const { page, close } = await visit(path, phone);
    await page.waitForTimeout(1500);
    const [width, shown] = await page.evaluate(() => [
      document.documentElement.scrollWidth,
      document.documentElement.clientWidth,
    ]);
    assert.ok(width <= shown, `${path}: ${width} of ${shown}`);
    await close();
  }
});

test("a dead server turns the dashboard grey, and it comes back by itself", { skip }, async () => {
  const doomed = await serve();
  await doomed.beat("u1");
  const { page, close } = await visit("/#watch=u1", {}, doomed);
  const green = () => page.locator(".dot.online").count();
  await until("server and u1 are green", async () => (await green()) === 2);
  await doomed.end("SIGKILL");
  await page.waitForFunction(() => document.body.classList.contains("lost"));
  assert.equal(await green(), 0);
  assert.equal(await textOf(page, "#online"), "–");
  assert.equal(await textOf(page, "#server"), "not reachable");
  await doomed.start();
  await until("it is seen", async () => (await green()) > 0);
  await close();
  await doomed.close();
});

test("two windows of the demo see each other", { skip }, async () => {
  const alice = await visit("/demo?user=alice&friends=bob");
  const words = (of, user) => of.page.locator(`green-dot[user="${user}"]`).last();
  const shows = (of, user, status) =>
    until(
      `${user} is ${status}`,
      async () => (await words(of, user).getAttribute("status")) === status,
    );
  await shows(alice, "alice", "online");
  await shows(alice, "bob", "offline");
  const link = await alice.page.locator("#friends a").getAttribute("href");
  assert.equal(link, "/demo?user=bob&friends=alice");
  const bob = await visit(link);
  await shows(alice, "bob", "online");
  await shows(bob, "alice", "online");
  await bob.page.check("[value=away]");
  await shows(alice, "bob", "away");
  await bob.page.check("#invisible");
  await shows(alice, "bob", "offline");
  await bob.page.uncheck("#invisible");
  await shows(alice, "bob", "away");
  await bob.page.click("#leave");
  await shows(alice, "bob", "offline");
  await bob.page.click("#back");
  await shows(alice, "bob", "away");
  await bob.page.click("#everywhere");
  await shows(alice, "bob", "offline");
  await bob.page.click("#back");
  await shows(alice, "bob", "away");
  await bob.page.check("[value=online]");
  await shows(alice, "bob", "online");
  // What is raw is shown as it came.
  assert.match(await textOf(alice.page, "#log"), /presence id \d+ \{"user":"bob","status":"away"/);
  for (const each of [alice, bob]) {
    assert.deepEqual([await faults(each.page), each.complaints], [[], []]);
    await each.close();
  }
});

test("a network that is cut in the demo is noticed, and mended", { skip }, async () => {
  const quick = await serve(
    "--keep-alive-ms=1000",
    "--beat-interval-ms=1000",
    "--offline-after-ms=3000",
    "--retry-ms=200",
  );
  const alice = await visit("/demo?user=alice&friends=bob", {}, quick);
  const bob = await visit("/demo?user=bob&friends=alice", {}, quick);
  const dot = alice.page.locator('#friends green-dot[user="bob"]');
  const of = (name) => dot.getAttribute(name);
  await until("bob is online", async () => (await of("status")) === "online");
  await alice.page.click("#cut");
  await until("all is stale", async () => (await of("stale")) !== null);
  await until("alice has gone", async () => !(await quick.status("alice")).online);
  await alice.page.click("#cut");
  await until("all is live", async () => (await of("stale")) === null);
  await until("alice is back", async () => (await quick.status("alice")).online);
  for (const each of [alice, bob]) await each.close();
  await quick.close();
});

// Bob, Carol and the others as their dots show them: in the colours of a page of this scheme, or in
// words of another language.
const dots = (url, scheme, more = "") => `<!doctype html>
<html lang="${more ? "ar" : "en"}" dir="${more ? "rtl" : "ltr"}">
<meta name="color-scheme" content="${scheme}"><title>dots</title>
<style>
  body { font: 17px/1.4 system-ui, sans-serif; margin: 0; padding: 1rem 1.4rem; }
  p {
    margin: 0; padding: .45rem 0;
    border-top: 1px solid color-mix(in srgb, CanvasText 15%, Canvas);
  }
  p:first-of-type { border-top: 0; }
  green-dot { --green-dot-words: color-mix(in srgb, CanvasText 65%, Canvas); }
  ${scheme === "dark" ? darkDots : ""}
</style>
<script type="module">
  import { Greendot } from "${url}/client.js";
  import { GreenDot } from "${url}/green-dot.js";
  class Later extends Greendot {
    now() {
      return super.now() + 5 * 60_000;
    }
  }
  GreenDot.client = new Later({ url: "${url}" });
  ${more}
</script>
${["Bob", "Carol", "Dave", "Erin", "Frank"]
  .map((name) => `<p><green-dot user="${name.toLowerCase()}">${name}</green-dot>`)
  .join("\n")}`;

const darkDots = `green-dot {
    --green-dot-online: #3fcf7f; --green-dot-away: #f0c040; --green-dot-busy: #ff8a7a;
    --green-dot-offline: #8b96a3;
  }`;

const ARABIC = `Object.assign(GreenDot.words, {
    online: "متصل", away: "بعيد", busy: "مشغول", offline: "غير متصل",
    active: (ago) => "نشط " + ago,
  });`;

async function pictureDots(of) {
  const say = (path, json) =>
    fetch(`${of.url}/v1/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(json),
    });
  await say("beat", { users: ["bob", "carol", "dave", "erin"] });
  await say("status", { user: "carol", status: "away" });
  await say("status", { user: "dave", status: "busy" });
  await say("leave", { users: ["erin"] });
  const frames = ["light", "dark", "ar"].map((name) => `<iframe src="/${name}"></iframe>`);
  const pages = await site({
    "/": `<!doctype html><title>dots</title><style>
      body { margin: 0; display: flex; } iframe { border: 0; width: 17rem; height: 15rem; }
      </style>${frames.join("")}`,
    "/light": dots(of.url, "light"),
    "/dark": dots(of.url, "dark"),
    "/ar": dots(of.url, "light", ARABIC),
  });
  const options = { viewport: { width: 816, height: 240 }, deviceScaleFactor: 2 };
  const context = await browser.newContext(options);
  const page = await context.newPage();
  await page.goto(pages.url);
  for (const frame of page.frames().slice(1)) {
    for (const [user, status] of [
      ["dave", "busy"],
      ["erin", "offline"],
    ]) {
      const dot = frame.locator(`green-dot[user=${user}]`);
      await until(
        `${user} is ${status}`,
        async () => (await dot.getAttribute("status")) === status,
      );
    }
  }
  await page.screenshot({ path: `${process.env.PICTURES}/green-dot.png` });
  await context.close();
  pages.close();
}

const noPictures = skip || (!process.env.PICTURES && "PICTURES names no folder");
test("the pictures of the documents", { skip: noPictures }, async () => {
  const shown = await serve(
    "--beat-interval-ms=2000",
    "--offline-after-ms=8000",
    "--keep-alive-ms=2000",
    "--conns-max=1000",
  );
  await pictureDots(shown);
  const users = Array.from({ length: 300 }, (_, n) => `user-${n}`);
  // People who come and go while the page is looked at.
  let going = true;
  const busy = (async () => {
    for (let n = 0; going; n += 1) {
      // More and less of them in turn.
      await pause(40 + 35 * Math.sin(Date.now() / 9000));
      await Promise.all(users.slice(0, 20).map((_, at) => shown.beat(users[(n * 20 + at) % 300])));
      await fetch(`${shown.url}/nowhere`);
      await fetch(`${shown.url}/v1/leave`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ users: [users[n % 30]] }),
      });
    }
  })();
  const wide = { viewport: { width: 1200, height: 900 } };
  const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 };
  const watch = `/#watch=${users.slice(0, 3).join("&watch=")}`;
  const take = async ({ page }, name) =>
    page.screenshot({ path: `${process.env.PICTURES}/${name}.png`, fullPage: true });
  // A line of a quarter of an hour has a point each five seconds.
  await pause(90_000);
  for (const [name, options] of [
    ["dashboard", wide],
    ["dashboard-dark", { ...wide, colorScheme: "dark" }],
    ["dashboard-phone", phone],
  ]) {
    const looked = await visit(watch, options, shown);
    await looked.page.waitForTimeout(12_000);
    await take(looked, name);
    await looked.close();
  }
  going = false;
  await busy;
  const low = { viewport: { width: 1200, height: 650 } };
  const alice = await visit("/demo?user=alice&friends=bob,carol", low, shown);
  const bob = await visit("/demo?user=bob&friends=alice", wide, shown);
  await bob.page.check("[value=busy]");
  await alice.page.waitForTimeout(1500);
  await take(alice, "demo");
  const small = await visit("/demo?user=carol&friends=alice,bob", phone, shown);
  await small.page.waitForTimeout(1500);
  await take(small, "demo-phone");
  await small.close();
  const down = await visit(watch, wide, shown);
  await down.page.waitForTimeout(2500);
  await shown.close();
  await down.page.waitForFunction(() => document.body.classList.contains("lost"));
  await take(down, "dashboard-down");
  await alice.page.waitForSelector("green-dot[user=bob][stale]");
  await alice.page.waitForFunction(() => document.querySelector("#note").textContent !== "");
  await take(alice, "demo-down");
  for (const each of [alice, bob, down]) await each.close();
});
