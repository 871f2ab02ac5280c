// /v1/messages through the official Anthropic SDK.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import {
  ask, baseURL, description, errorOf, fitsReport, model, name, parameters, report, test, weather,
} from "./common.mjs";

const client = new Anthropic({
  baseURL: baseURL.replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0,
});
const user = (content) => ({ role: "user", content });
const tools = [{ name, description, input_schema: parameters }];
const body = { model, max_tokens: 200, temperature: 0, messages: [user(ask)] };

await test("an answer", async () => {
  const m = await client.messages.create({ ...body, system: "Be brief.", messages: [user("Hi!")] });
  assert.match(m.id, /^msg_/);
  assert.equal(m.content[0].type, "text");
  assert.ok(["end_turn", "max_tokens"].includes(m.stop_reason));
  assert.ok(m.usage.input_tokens > 0 && m.usage.output_tokens > 0);
});

await test("a stream is the same answer", async () => {
  const whole = await client.messages.create(body);
  const streamed = await client.messages.stream(body).finalMessage();
  assert.deepEqual(streamed.content, whole.content);
  assert.equal(streamed.stop_reason, whole.stop_reason);
  assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens);
});

for (const streams of [false, true]) {
  await test(`a loop of two steps${streams ? ", streamed" : ""}`, async () => {
    const say = (b) => streams ? client.messages.stream(b).finalMessage()
                               : client.messages.create(b);
    const first = await say({ ...body, tools, tool_choice: { type: "tool", name } });
    assert.equal(first.stop_reason, "tool_use");
    const call = first.content.at(-1);
    assert.equal(call.type, "tool_use");
    assert.deepEqual(call.input, { city: "Paris" });
    const second = await say({
      ...body, tools,
      messages: [
        user(ask),
        { role: "assistant", content: first.content },
        user([{ type: "tool_result", tool_use_id: call.id, content: weather }]),
      ],
    });
    assert.equal(second.stop_reason, "end_turn");
    assert.match(second.content[0].text, /21/);
    assert.ok(second.usage.cache_read_input_tokens >= 64);
  });
}

await test("thinking within its budget", async () => {
  const say = (thinking) => client.messages.create({
    ...body, max_tokens: 400, messages: [user("What is 3 + 4?")], thinking,
  });
  const free = await say({ type: "enabled" });
  assert.equal(free.content[0].type, "thinking");
  const bound = await say({ type: "enabled", budget_tokens: 5 });
  assert.ok(free.content[0].thinking.startsWith(bound.content[0].thinking));
  assert.ok(free.content[0].thinking.length > bound.content[0].thinking.length);
  assert.equal(bound.content[1].type, "text");
});

await test("structured output", async () => {
  const wish = { ...body, max_tokens: 300, output_config: {
    format: { type: "json_schema", schema: report },
  } };
  const whole = await client.messages.create(wish);
  assert.equal(whole.stop_reason, "end_turn");
  fitsReport(JSON.parse(whole.content[0].text));
  const streamed = await client.messages.stream(wish).finalMessage();
  assert.deepEqual(streamed.content, whole.content);
  const thought = await client.messages.create({
    ...wish, max_tokens: 500, thinking: { type: "enabled", budget_tokens: 40 },
  });
  assert.equal(thought.content[0].type, "thinking");
  fitsReport(JSON.parse(thought.content[1].text));
});

await test("stop sequences", async () => {
  const m = await client.messages.create({
    ...body, tools, tool_choice: { type: "none" }, stop_sequences: ["a", "e", "i", "o"],
  });
  assert.equal(m.stop_reason, "stop_sequence");
  assert.ok("aeio".includes(m.stop_sequence));
});

await test("tokens are counted", async () => {
  const { input_tokens } = await client.messages.countTokens({ model, messages: body.messages });
  const m = await client.messages.create({ ...body, max_tokens: 1 });
  assert.equal(input_tokens, m.usage.input_tokens + m.usage.cache_read_input_tokens);
});

await test("errors", async () => {
  const e = await errorOf(client.messages.create({ ...body, temperature: 1.5 }));
  assert.ok(e instanceof Anthropic.BadRequestError);
  assert.equal(e.error.error.type, "invalid_request_error");
  assert.match(e.error.error.message, /temperature/);
  const nope = await errorOf(client.messages.create({ ...body, model: "nope" }));
  assert.ok(nope instanceof Anthropic.NotFoundError);
  assert.equal(nope.error.error.type, "not_found_error");
});

console.log("end");
