// /v1/responses through the official OpenAI SDK.
import assert from "node:assert/strict";
import OpenAI from "openai";
import {
  ask, baseURL, description, errorOf, fitsReport, model, name, parameters, report, test, weather,
} from "./common.mjs";

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const tools = [{ type: "function", name, description, parameters, strict: false }];
const body = { model, input: ask, temperature: 0, max_output_tokens: 200 };

await test("an answer", async () => {
  const r = await client.responses.create({ ...body, input: "Hello!", instructions: "Be brief." });
  assert.match(r.id, /^resp_[0-9a-f]{24}$/);
  assert.ok(["completed", "incomplete"].includes(r.status));
  assert.ok(r.output_text.length > 0);
  assert.equal(r.usage.total_tokens, r.usage.input_tokens + r.usage.output_tokens);
  assert.equal(r.instructions, "Be brief.");
});

await test("a stream is the same answer", async () => {
  const whole = await client.responses.create(body);
  const stream = await client.responses.create({ ...body, stream: true });
  let text = "", last, number = 0;
  for await (const ev of stream) {
    assert.equal(ev.sequence_number, number++);
    if (ev.type === "response.output_text.delta")
      text += ev.delta;
    last = ev;
  }
  assert.equal(last.type, whole.status === "completed" ? "response.completed"
                                                       : "response.incomplete");
  assert.equal(text, whole.output_text);
  assert.deepEqual(last.response.output.map((o) => o.content), whole.output.map((o) => o.content));
  assert.equal(last.response.usage.output_tokens, whole.usage.output_tokens);
});

await test("the SDK puts a stream together", async () => {
  const run = client.responses.stream({ ...body, tools, tool_choice: { type: "function", name } });
  const r = await run.finalResponse();
  assert.equal(r.output.at(-1).type, "function_call");
  assert.deepEqual(JSON.parse(r.output.at(-1).arguments), { city: "Paris" });
});

for (const kept of [true, false]) {
  await test(`a loop of two steps, ${kept ? "kept here" : "sent back"}`, async () => {
    const first = await client.responses.create({
      ...body, tools, store: kept, tool_choice: { type: "function", name },
    });
    const call = first.output.at(-1);
    assert.equal(call.type, "function_call");
    assert.equal(call.name, name);
    const result = { type: "function_call_output", call_id: call.call_id, output: weather };
    const second = await client.responses.create({
      ...body, tools, store: kept,
      ...(kept ? { previous_response_id: first.id, input: [result] }
               : { input: [{ role: "user", content: ask }, ...first.output, result] }),
    });
    assert.match(second.output_text, /21/);
    assert.equal(second.status, "completed");
    assert.ok(second.usage.input_tokens_details.cached_tokens >= 64);
  });
}

await test("reasoning within its budget", async () => {
  const say = (more) => client.responses.create({
    ...body, input: "What is 3 + 4?", reasoning: { effort: "medium" }, max_output_tokens: 400,
    ...more,
  });
  const free = await say({});
  assert.equal(free.output[0].type, "reasoning");
  const used = free.usage.output_tokens_details.reasoning_tokens;
  assert.ok(used > 6);
  const bound = await say({ thinking_token_budget: 5 });
  assert.equal(bound.usage.output_tokens_details.reasoning_tokens, 6); // with the end marker
  assert.ok(free.output[0].content[0].text.startsWith(bound.output[0].content[0].text));
  assert.equal(bound.output[1].type, "message");
  const wide = await say({ thinking_token_budget: used });
  assert.deepEqual(wide.output.map((o) => o.content), free.output.map((o) => o.content));
});

await test("structured output", async () => {
  const format = { type: "json_schema", name: "report", schema: report, strict: true };
  const wish = { ...body, text: { format }, max_output_tokens: 300 };
  const r = await client.responses.create(wish);
  fitsReport(JSON.parse(r.output_text));
  const parsed = await client.responses.parse(wish);
  fitsReport(parsed.output_parsed);
  const streamed = await client.responses.stream(wish).finalResponse();
  assert.equal(streamed.output.at(-1).content[0].text, r.output_text);
  const thought = await client.responses.create({
    ...wish, reasoning: { effort: "low" }, thinking_token_budget: 40, max_output_tokens: 500,
  });
  assert.equal(thought.output[0].type, "reasoning");
  fitsReport(JSON.parse(thought.output_text));
});

await test("a broken stream is gone on from", async () => {
  const first = await client.responses.create({ ...body, stream: true, resumable: true });
  const had = [];
  let id;
  for await (const ev of first) {
    id ??= ev.response.id;
    had.push(ev);
    if (had.length === 5)
      break; // which closes the connection
  }
  const after = had.at(-1).sequence_number;
  for await (const ev of await client.get(`/responses/${id}`, {
    query: { stream: "true", starting_after: after }, stream: true,
  }))
    had.push(ev);
  assert.deepEqual(had.map((ev) => ev.sequence_number), had.map((_, i) => i));
  const whole = await client.responses.create(body);
  assert.deepEqual(had.at(-1).response.output.map((o) => o.content),
                   whole.output.map((o) => o.content));
});

await test("read and deleted", async () => {
  const r = await client.responses.create({ ...body, max_output_tokens: 3 });
  assert.deepEqual((await client.responses.retrieve(r.id)).output, r.output);
  await client.responses.del(r.id);
  const e = await errorOf(client.responses.retrieve(r.id));
  assert.equal(e.status, 404);
  assert.equal(e.code, "response_not_found");
});

await test("errors", async () => {
  const e = await errorOf(client.responses.create({ ...body, temperature: 3 }));
  assert.ok(e instanceof OpenAI.BadRequestError);
  assert.deepEqual([e.status, e.param, e.code], [400, "temperature", "invalid_value"]);
  const gone = await errorOf(client.responses.create({ ...body, previous_response_id: "resp_0" }));
  assert.deepEqual([gone.status, gone.param, gone.code],
                   [400, "previous_response_id", "previous_response_not_found"]);
  const nope = await errorOf(client.responses.create({ ...body, model: "nope" }));
  assert.deepEqual([nope.status, nope.code], [404, "model_not_found"]);
});

console.log("end");
