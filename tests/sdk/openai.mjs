// The official OpenAI SDK against a running server: node openai.mjs http://127.0.0.1:8000/v1
// Prints "ok name" or "FAIL name: why" a test, then "end".
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "tiny";
const messages = [{ role: "user", content: "Hi" }];

async function test(name, run) {
  try {
    await run();
    console.log("ok " + name);
  } catch (e) {
    console.log(`FAIL ${name}: ${e.stack ?? e}`);
  }
}

async function rejects(promise, status, param, code) {
  try {
    await promise;
  } catch (e) {
    assert.ok(e instanceof OpenAI.APIError, String(e));
    assert.equal(e.status, status);
    if (param !== undefined) assert.equal(e.param, param);
    if (code !== undefined) assert.equal(e.code, code);
    assert.ok(e.requestID === undefined || typeof e.requestID === "string");
    return;
  }
  assert.fail("no error");
}

async function metric(name) {
  const url = process.argv[2].replace(/\/v1$/, "/metrics");
  const text = await (await fetch(url)).text();
  const line = text.split("\n").find((l) => l.startsWith(name));
  return Number(line.split(" ").at(-1));
}

await test("models.list", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.deepEqual(ids, ["tiny", "gpt-4o"]);
});

await test("models.retrieve", async () => {
  const m = await client.models.retrieve("tiny");
  assert.equal(m.object, "model");
  assert.equal(m.max_model_len, 8192);
  await rejects(client.models.retrieve("nope"), 404, "model", "model_not_found");
});

await test("chat", async () => {
  const { data, response } = await client.chat.completions
    .create({ model, messages, max_tokens: 8 }, { headers: { "x-request-id": "mine" } })
    .withResponse();
  assert.equal(response.headers.get("x-request-id"), "mine");
  assert.equal(data.object, "chat.completion");
  assert.equal(typeof data.choices[0].message.content, "string");
  assert.equal(data.choices[0].message.role, "assistant");
  assert.equal(data.choices[0].message.refusal, null);
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
});

await test("chat with n, seed, stop and penalties", async () => {
  const ask = () =>
    client.chat.completions.create({
      model: "gpt-4o", messages, max_completion_tokens: 6, n: 3, seed: 11, temperature: 1,
      stop: ["zzz"], presence_penalty: 0.5, frequency_penalty: 0.5, logit_bias: { 5: -100 },
    });
  const [a, b] = [await ask(), await ask()];
  assert.equal(a.choices.length, 3);
  assert.equal(a.model, "gpt-4o");
  assert.deepEqual(a.choices.map((c) => c.message.content), b.choices.map((c) => c.message.content));
});

await test("chat, streamed, is the same text", async () => {
  const body = { model, messages, max_tokens: 12, temperature: 0 };
  const whole = await client.chat.completions.create(body);
  const stream = await client.chat.completions.create({
    ...body, stream: true, stream_options: { include_usage: true },
  });
  let text = "", finish = null, usage = null, chunks = 0;
  for await (const c of stream) {
    chunks++;
    text += c.choices[0]?.delta?.content ?? "";
    finish ??= c.choices[0]?.finish_reason ?? null;
    usage ??= c.usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(finish, whole.choices[0].finish_reason);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  assert.ok(chunks >= 3);
});

await test("chat stream helper accumulates", async () => {
  const run = client.beta.chat.completions.stream({ model, messages, max_tokens: 6, temperature: 0 });
  const final = await run.finalChatCompletion();
  assert.equal(typeof final.choices[0].message.content, "string");
});

await test("chat logprobs", async () => {
  const c = await client.chat.completions.create({
    model, messages, max_tokens: 3, logprobs: true, top_logprobs: 2, temperature: 0,
  });
  const content = c.choices[0].logprobs.content;
  assert.equal(content.length, c.usage.completion_tokens);
  for (const t of content) {
    assert.equal(t.top_logprobs.length, 2);
    assert.ok(t.logprob <= 0 && Array.isArray(t.bytes));
    assert.equal(t.top_logprobs[0].logprob, t.logprob); // greedy: the likeliest
  }
});

await test("completions", async () => {
  const c = await client.completions.create({
    model, prompt: ["Hi", "Ho"], max_tokens: 4, n: 2, temperature: 0, logprobs: 1,
  });
  assert.deepEqual(c.choices.map((x) => x.index), [0, 1, 2, 3]);
  assert.equal(c.choices[0].text, c.choices[1].text);
  assert.equal(c.choices[0].logprobs.tokens.length, c.choices[0].logprobs.token_logprobs.length);
});

await test("completions with token ids, echo and no new token", async () => {
  const c = await client.completions.create({
    model, prompt: [40, 41, 42], max_tokens: 0, echo: true, logprobs: 0,
  });
  assert.equal(c.choices[0].logprobs.token_logprobs.length, 3);
  assert.equal(c.usage.completion_tokens, 0);
});

await test("completions, streamed", async () => {
  const body = { model, prompt: "Hi", max_tokens: 8, temperature: 0 };
  const whole = await client.completions.create(body);
  let text = "";
  for await (const c of await client.completions.create({ ...body, stream: true }))
    text += c.choices[0].text;
  assert.equal(text, whole.choices[0].text);
});

await test("errors", async () => {
  const ask = (more) => client.chat.completions.create({ model, messages, max_tokens: 1, ...more });
  await rejects(ask({ model: "nope" }), 404, "model", "model_not_found");
  await rejects(ask({ temperature: 3 }), 400, "temperature");
  await rejects(ask({ top_p: 0 }), 400, "top_p");
  await rejects(ask({ n: 0 }), 400, "n");
  await rejects(ask({ top_logprobs: 2 }), 400, "top_logprobs");
  await rejects(ask({ messages: [] }), 400, "messages");
  await rejects(ask({ messages: [{ role: "nobody", content: "x" }] }), 400);
  await rejects(ask({ stream_options: { include_usage: true } }), 400, "stream_options");
  await rejects(ask({ max_tokens: 100000 }), 400, "messages", "context_length_exceeded");
  await rejects(client.completions.create({ model, prompt: "x", suffix: "y" }), 400, "suffix");
  await rejects(client.embeddings.create({ model, input: "x" }), 501, null, "not_implemented");
});

await test("a stream that is aborted frees its request", async () => {
  const stream = await client.completions.create({
    model, prompt: "Hi", max_tokens: 8000, stream: true, ignore_eos: true,
  });
  let n = 0;
  for await (const c of stream) {
    assert.equal(c.object, "text_completion");
    if (++n === 3) stream.controller.abort();
  }
  for (let i = 0; i < 100 && (await metric("vllm:num_requests_running")) > 0; i++)
    await new Promise((r) => setTimeout(r, 20));
  assert.equal(await metric("vllm:num_requests_running"), 0);
  assert.equal(await metric("gaze_engine_requests"), 0);
});

await test("twenty at once", async () => {
  const body = { model, messages, max_tokens: 10, temperature: 0 };
  const alone = (await client.chat.completions.create(body)).choices[0].message.content;
  const all = await Promise.all([...Array(20)].map(() => client.chat.completions.create(body)));
  for (const c of all) assert.equal(c.choices[0].message.content, alone);
});

console.log("end");
