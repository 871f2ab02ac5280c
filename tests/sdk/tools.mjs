// Tool calls through the official OpenAI SDK, with the bundled model, which was trained on this one:
// node tools.mjs http://127.0.0.1:8000/v1
// Prints "ok name" or "FAIL name: why" a test, then "end".
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { fitsReport, report } from "./common.mjs";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "ember";
const question = { role: "user", content: "What is the weather in Paris?" };
const tools = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];
const body = { model, messages: [question], tools, temperature: 0, max_tokens: 200 };
const named = { type: "function", function: { name: "get_weather" } };

async function test(name, run) {
  try {
    await run();
    console.log("ok " + name);
  } catch (e) {
    console.log(`FAIL ${name}: ${e.stack ?? e}`);
  }
}

function checkCall(choice) {
  const [call, ...others] = choice.message.tool_calls;
  assert.equal(choice.finish_reason, "tool_calls");
  assert.equal(choice.message.content ?? null, null);
  assert.deepEqual(others, []);
  assert.match(call.id, /^call_[0-9a-f]{24}$/);
  assert.equal(call.type, "function");
  assert.equal(call.function.name, "get_weather");
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  return call;
}

for (const tool_choice of ["auto", "required", named]) {
  const name = tool_choice.type ?? tool_choice;
  await test(`a tool call, ${name}`, async () => {
    checkCall((await client.chat.completions.create({ ...body, tool_choice })).choices[0]);
  });
  await test(`a tool call, ${name}, streamed`, async () => {
    const run = client.beta.chat.completions.stream({ ...body, tool_choice });
    checkCall((await run.finalChatCompletion()).choices[0]);
  });
}

await test("the deltas of a tool call", async () => {
  const stream = await client.chat.completions.create({
    ...body, stream: true, stream_options: { include_usage: true },
  });
  let id, name, text = "", finish, usage, fragments = 0;
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    for (const call of chunk.choices[0]?.delta?.tool_calls ?? []) {
      assert.equal(call.index, 0);
      assert.equal(call.id !== undefined, fragments === 0);
      assert.equal(call.function.name !== undefined, fragments === 0);
      id ??= call.id;
      name ??= call.function.name;
      text += call.function.arguments;
      fragments++;
    }
    finish ??= chunk.choices[0]?.finish_reason;
  }
  checkCall({
    finish_reason: finish,
    message: { tool_calls: [{ id, type: "function", function: { name, arguments: text } }] },
  });
  assert.ok(fragments > 2);
  assert.ok(usage.completion_tokens > fragments);
});

await test("tool_choice none", async () => {
  const c = (await client.chat.completions.create({ ...body, tool_choice: "none" })).choices[0];
  assert.equal(c.message.tool_calls, undefined);
  assert.equal(typeof c.message.content, "string");
  assert.ok(!c.message.content.includes("<｜tool"));
  assert.equal(c.finish_reason, "stop");
});

await test("a loop of two steps is rendered back token by token", async () => {
  for (const tool_choice of ["auto", named]) {
    const first = await client.chat.completions.create({
      ...body, tool_choice, return_token_ids: true,
    });
    const call = checkCall(first.choices[0]);
    const second = await client.chat.completions.create({
      ...body,
      return_token_ids: true,
      messages: [
        question,
        first.choices[0].message,
        { role: "tool", tool_call_id: call.id, content: '{"temperature": 21, "sky": "clear"}' },
      ],
    });
    const before = [...first.prompt_token_ids, ...first.choices[0].token_ids];
    assert.ok(before.length > 128);
    assert.deepEqual(second.prompt_token_ids.slice(0, before.length), before);
    assert.ok(second.usage.prompt_tokens_details.cached_tokens >= 128);
    assert.equal(second.choices[0].finish_reason, "stop");
    assert.match(second.choices[0].message.content, /21/);
  }
});

await test("the SDK runs the tool itself", async () => {
  const asked = [];
  const run = client.beta.chat.completions.runTools({
    ...body,
    tools: [{
      type: "function",
      function: {
        ...tools[0].function,
        parse: JSON.parse,
        function: ({ city }) => (asked.push(city), '{"temperature": 21, "sky": "clear"}'),
      },
    }],
  });
  assert.match(await run.finalContent(), /21/);
  assert.deepEqual(asked, ["Paris"]);
});

const json_schema = { name: "report", schema: report, strict: true };
const structured = {
  model, messages: [question], max_tokens: 300,
  response_format: { type: "json_schema", json_schema },
};

await test("structured output", async () => {
  for (const more of [{ temperature: 0 }, { temperature: 1.5, seed: 3, n: 3 }]) {
    const c = await client.chat.completions.create({ ...structured, ...more });
    for (const choice of c.choices) {
      assert.equal(choice.finish_reason, "stop");
      fitsReport(JSON.parse(choice.message.content));
    }
  }
  const c = await client.chat.completions.create({
    ...structured, max_tokens: 500, thinking: { type: "enabled" }, thinking_token_budget: 40,
  });
  assert.equal(typeof c.choices[0].message.reasoning_content, "string");
  fitsReport(JSON.parse(c.choices[0].message.content));
});

await test("structured output, streamed and read by the SDK", async () => {
  const run = client.beta.chat.completions.stream({ ...structured, temperature: 0 });
  fitsReport(JSON.parse((await run.finalMessage()).content));
  const Weather = z.object({ city: z.string().max(20), degrees: z.number().int().max(60) });
  const parsed = await client.beta.chat.completions.parse({
    ...structured, response_format: zodResponseFormat(Weather, "weather"),
  });
  Weather.parse(parsed.choices[0].message.parsed);
});

await test("structured output beside tools", async () => {
  const c = (await client.chat.completions.create({
    ...structured, tools, temperature: 0,
  })).choices[0];
  if (c.finish_reason === "tool_calls")
    checkCall(c);
  else
    fitsReport(JSON.parse(c.message.content));
});

await test("a schema that cannot be kept is refused by keyword and place", async () => {
  const e = await client.chat.completions.create({
    ...structured,
    response_format: {
      type: "json_schema",
      json_schema: {
        name: "x", schema: { type: "object", properties: { a: { $ref: "https://example.org/x" } } },
      },
    },
  }).catch((x) => x);
  assert.equal(e.status, 400);
  assert.equal(e.param, "response_format.json_schema.schema");
  assert.match(e.message, /\$ref/);
  assert.match(e.message, /\/properties\/a/);
});

await test("two choices, and one call each", async () => {
  const c = await client.chat.completions.create({
    ...body, n: 2, parallel_tool_calls: false, logprobs: true,
  });
  const ids = c.choices.map((choice) => checkCall(choice).id);
  assert.notEqual(ids[0], ids[1]);
  const tokens = c.choices.map((choice) => choice.logprobs.content.length);
  assert.equal(c.usage.completion_tokens, tokens[0] + tokens[1]);
});

await test("a stop string inside a call", async () => {
  const c = (await client.chat.completions.create({ ...body, stop: ["Paris"] })).choices[0];
  assert.equal(c.finish_reason, "stop");
  assert.equal(c.message.tool_calls[0].function.arguments, '{"city": "');
});

await test("reasoning and its tokens", async () => {
  const c = await client.chat.completions.create({
    model, messages: [{ role: "user", content: "What is 3 + 4?" }], temperature: 0,
    max_tokens: 400, thinking: { type: "enabled" }, logprobs: true,
  });
  const said = c.choices[0].logprobs.content.map((t) => t.token);
  const closed = said.indexOf("</think>");
  assert.ok(closed > 0);
  assert.equal(c.usage.completion_tokens_details.reasoning_tokens, closed + 1);
  assert.equal(c.choices[0].message.reasoning_content, said.slice(0, closed).join(""));
  assert.ok(!c.choices[0].message.content.includes("</think>"));
});

await test("a call is required behind the reasoning", async () => {
  for (const tool_choice of ["required", named]) {
    const c = (await client.chat.completions.create({
      ...body, tool_choice, max_tokens: 600, thinking: { type: "enabled" },
      thinking_token_budget: 60,
    })).choices[0];
    assert.equal(c.message.tool_calls[0].function.name, "get_weather");
    assert.equal(typeof JSON.parse(c.message.tool_calls[0].function.arguments), "object");
    assert.equal(typeof c.message.reasoning_content, "string");
    assert.equal(c.finish_reason, "tool_calls");
  }
});

console.log("end");
