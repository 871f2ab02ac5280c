// The page at GET /, in a real browser that is driven over its debugging pipe:
// node page.mjs http://127.0.0.1:8000/v1          SHOT=page.png keeps a picture of it
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { baseURL, test } from "./common.mjs";

const root = baseURL.replace(/v1$/, "");
const home = mkdtempSync(join(tmpdir(), "page-"));
const browser = spawn(process.env.BROWSER ?? "chromium", [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
  `--user-data-dir=${home}`, "--window-size=1200,800", "about:blank",
], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });

// --- the browser's protocol: JSON with a NUL behind each message ----------------------------------
const waiting = new Map(), complaints = [];
let next = 1, session;
let rest = Buffer.alloc(0);
browser.stdio[4].on("data", (data) => {
  rest = Buffer.concat([rest, data]);
  for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) {
    const m = JSON.parse(rest.subarray(0, end).toString());
    const call = waiting.get(m.id);
    if (call) {
      waiting.delete(m.id);
      clearTimeout(call.late);
      m.error ? call.fail(new Error(m.error.message)) : call.done(m.result);
    } else if (m.method === "Runtime.exceptionThrown") {
      complaints.push(m.params.exceptionDetails.exception?.description ?? "an exception");
    } else if (m.method === "Log.entryAdded" && m.params.entry.level === "error") {
      complaints.push(`${m.params.entry.text} ${m.params.entry.url ?? ""}`);
    }
  }
});
const send = (method, params = {}) => new Promise((done, fail) => {
  const late = setTimeout(
    () => fail(new Error(`no answer to ${method} ${JSON.stringify(params)}`)), 40000);
  waiting.set(next, { done, fail, late });
  browser.stdio[3].write(JSON.stringify({ id: next++, method, params, sessionId: session }) + "\0");
});
const run = async (expression) => {
  const r = await send("Runtime.evaluate", {
    expression, awaitPromise: true, returnByValue: true, userGesture: true,
  });
  assert.ok(!r.exceptionDetails, JSON.stringify(r.exceptionDetails));
  return r.result.value;
};
async function until(expression, what = expression) {
  for (let i = 0; i < 300; i++) {
    if (await run(expression))
      return;
    await new Promise((go) => setTimeout(go, 100));
  }
  assert.fail(`never: ${what}; ${await run("document.body.innerText")}`);
}

const set = (name, value) =>
  run(`settings[${JSON.stringify(name)}].value = ${JSON.stringify(String(value))}`);
const type = async (text) => {
  await run("question.focus()");
  await send("Input.insertText", { text });
  for (const kind of ["keyDown", "keyUp"])
    await send("Input.dispatchKeyEvent", {
      type: kind, key: "Enter", code: "Enter", windowsVirtualKeyCode: 13,
    });
};
const last = (part) => `log.querySelector("article:last-of-type ${part}")`;
const idle = 'running === null && !document.querySelector("[aria-busy]")';
const answer = async () => {
  await until(idle, "the answer ends");
  return run(`${last(".text:not(.thoughts .text)")}.textContent`);
};

const { targetInfos } = await send("Target.getTargets");
({ sessionId: session } = await send("Target.attachToTarget", {
  targetId: targetInfos.find((t) => t.type === "page").targetId, flatten: true,
}));
for (const domain of ["Runtime", "Log", "Page", "Network", "Accessibility"])
  await send(`${domain}.enable`);
await send("Page.navigate", { url: root });

await test("the page shows the server", async () => {
  await until('typeof look === "function" && at("state").textContent.startsWith("ready: ")');
  const version = await (await fetch(root + "version")).json();
  const models = await (await fetch(root + "v1/models")).json();
  const about = await run('at("about").innerText');
  for (const fact of [version.commit, version.backend, version.system_fingerprint])
    assert.ok(about.includes(fact), `${fact} in ${about}`);
  assert.deepEqual(await run("[...settings.model.options].map((o) => o.value)"),
                   models.data.map((m) => m.id));
});

await test("a question and its answer", async () => {
  await set("temperature", 0);
  await set("max_tokens", 60);
  await type("What is the weather in Paris?");
  const text = await answer();
  const direct = await (await fetch(root + "v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({
      messages: [{ role: "user", content: "What is the weather in Paris?" }], temperature: 0,
      max_tokens: 60, thinking: { type: "disabled" },
    }),
  })).json();
  assert.equal(text, direct.choices[0].message.content);
  assert.match(await run(`${last(".cost")}.textContent`), /\d+ tokens · .* a second · .* device/);
  await type("And tomorrow?"); // the conversation goes along
  await answer();
  assert.equal(await run("messages.length"), 4);
});

await test("thoughts have a place of their own", async () => {
  await run('at("fresh").click(), settings.thinking.checked = true');
  await set("max_tokens", 400);
  await type("What is 3 + 4?");
  await answer();
  assert.ok((await run(`${last(".thoughts .text")}.textContent`)).length > 10);
  await run("settings.thinking.checked = false");
});

await test("markup in a message is text", async () => {
  await run('at("fresh").click()');
  await set("max_tokens", 5);
  await type('<img src=x onerror="window.hit = 1"><b>bold</b>');
  await answer();
  assert.equal(await run('log.querySelectorAll("img, b").length'), 0);
  assert.equal(await run('log.querySelector("article.user .text").textContent'),
               '<img src=x onerror="window.hit = 1"><b>bold</b>');
  assert.equal(await run("window.hit"), undefined);
});

await test("a lost connection is gone on from", async () => {
  const body = { temperature: 0, seed: 1, max_tokens: 300 };
  await run('at("fresh").click()');
  for (const [name, value] of Object.entries(body))
    await set(name, value);
  await type("Tell me a long story.");
  const whole = await answer();
  await run('at("fresh").click()');
  // The first answer breaks off in the middle, as a proxy that dies would have it.
  await run(`{
    const plain = window.fetch;
    window.asked = [];
    window.fetch = async (url, options) => {
      window.asked.push(String(url));
      const answer = await plain(url, options);
      if (!String(url).endsWith("completions"))
        return answer;
      window.fetch = async (u, o) => (window.asked.push(String(u)), plain(u, o));
      let pieces = 0;
      const cut = new TransformStream({
        transform(chunk, to) {
          to.enqueue(chunk);
          if (++pieces === 4)
            to.error(new TypeError("network error"));
        },
      });
      return new Response(answer.body.pipeThrough(cut), answer);
    };
  }`);
  await type("Tell me a long story.");
  assert.equal(await answer(), whole);
  const resumed = (await run("window.asked")).filter((u) => u.includes("v1/streams/"));
  assert.equal(resumed.length, 1);
  assert.match(resumed[0], /from=[1-9]/);
});

await test("stop ends the answer at the server, too", async () => {
  await run('at("fresh").click()');
  await set("max_tokens", 20000);
  await run(`{
    const plain = window.fetch; // the model may not end it by itself; the page looks at metrics, too
    window.fetch = (url, options) => !options?.body ? plain(url, options)
      : (window.fetch = plain, plain(url, {
        ...options, body: JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true }),
      }));
  }`);
  await type("Go on for ever.");
  await until("running && running.id");
  await run('at("stop").click()');
  await until(idle);
  await until(`fetch("metrics").then((r) => r.text())
    .then((t) => metric(t, "vllm:num_requests_running") === 0)`);
});

await test("what is refused is told", async () => {
  await run('at("fresh").click()');
  await set("max_tokens", 100000000);
  await type("Hi");
  await until('log.querySelector("[role=alert]")');
  assert.match(await run('log.querySelector("[role=alert]").textContent'), /context/);
  assert.equal(await run("messages.length"), 1);
});

await test("everything that can be used has a name", async () => {
  const { nodes } = await send("Accessibility.getFullAXTree");
  const used = nodes.filter((n) => !n.ignored && [
    "button", "textbox", "combobox", "checkbox", "spinbutton", "log", "status", "link", "form",
  ].includes(n.role?.value));
  assert.ok(used.length >= 14, `${used.length}`);
  for (const n of used)
    assert.ok(n.name?.value || ["status", "form"].includes(n.role.value), JSON.stringify(n));
});

await test("the browser has nothing to complain of", () => {
  const own = complaints.filter((c) => !c.includes("status of 400"));
  assert.deepEqual(own, []);
});

if (process.env.SHOT) {
  await run('at("fresh").click(), settings.thinking.checked = true');
  await set("max_tokens", 400);
  await set("temperature", 0);
  await type("What is 3 + 4?");
  await answer();
  const { data } = await send("Page.captureScreenshot", { format: "png" });
  writeFileSync(process.env.SHOT, Buffer.from(data, "base64"));
}
console.log("end");
browser.kill();
browser.on("exit", () => {
  rmSync(home, { recursive: true, force: true, maxRetries: 20 }); // its children may still write
  process.exit();
});
