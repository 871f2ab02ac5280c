// Tool calls through the official OpenAI SDK, with the bundled model, which was trained on this one:
// node tools.mjs http://127.0.0.1:8000/v1
// Prints "ok name" or "FAIL name: why" a test, then "end".
import assert from "node:assert/strict";
import OpenAI from "openai";

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

async function rejects(promise, status, param) {
  try {
    await promise;
  } catch (e) {
    assert.equal(e.status, status);
    assert.equal(e.param, param);
    return;
  }
  assert.fail("no error");
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

await test("a call cannot be required while thinking", async () => {
  const thinking = { type: "enabled" };
  await rejects(client.chat.completions.create({ ...body, tool_choice: "required", thinking }),
                400, "tool_choice");
});

console.log("end");
