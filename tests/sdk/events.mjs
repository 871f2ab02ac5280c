// Whole answers and every event of streams, with reasoning, calls and text, against the schemas of
// the server's own /openapi.json: node events.mjs http://127.0.0.1:8000/v1
import assert from "node:assert/strict";
import Ajv from "ajv/dist/2020.js";
import { ask, baseURL, description, model, name, parameters, test } from "./common.mjs";

const root = baseURL.replace(/\/v1$/, "");
const doc = await (await fetch(root + "/openapi.json")).json();
const ajv = new Ajv({ strict: false, allErrors: true });
ajv.addSchema(doc, "doc");
const schemaOf = (path, media) =>
  doc.paths[path].post.responses[200].content[media].schema.$ref.split("/").at(-1);
const fits = (schema, value) => {
  const check = ajv.getSchema(`doc#/components/schemas/${schema}`);
  assert.ok(check(value), `${schema}: ${JSON.stringify(check.errors)} ${JSON.stringify(value)}`);
};
const post = async (path, body) => {
  const r = await fetch(root + path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  assert.equal(r.status, 200, path);
  return r;
};
// Events as [name, data]; a closing [DONE] is left out.
const streamOf = async (path, body) =>
  (await (await post(path, { ...body, stream: true })).text()).split("\n\n")
    .filter((part) => /^(event|data):/m.test(part) && !part.endsWith("data: [DONE]"))
    .map((part) => [part.match(/^event: (.*)$/m)?.[1], JSON.parse(part.match(/^data: (.*)$/m)[1])]);

const chatTool = { type: "function", function: { name, description, parameters } };
const user = [{ role: "user", content: ask }];
const think = { thinking: { type: "enabled", budget_tokens: 8 } };
const effort = { reasoning: { effort: "low" } };
// Per endpoint: text, reasoning, a call behind reasoning, several calls or none, one that is cut.
const asked = {
  "/v1/chat/completions": {
    base: { model, messages: user, max_tokens: 120, temperature: 0 },
    with: [{}, think, { tools: [chatTool], tool_choice: "required", ...think },
           { tools: [chatTool] }, { max_tokens: 3 },
           { stream_options: undefined, logprobs: true, top_logprobs: 2 }],
  },
  "/v1/completions": {
    base: { model, prompt: "The sea", max_tokens: 12, temperature: 0 },
    with: [{}, { n: 2, logprobs: 2 }],
  },
  "/v1/messages": {
    base: { model, messages: user, max_tokens: 120, temperature: 0 },
    with: [{}, think, {
      tools: [{ name, description, input_schema: parameters }], tool_choice: { type: "any" }, ...think,
    }, { tools: [{ name, description, input_schema: parameters }] }, { max_tokens: 3 },
    { stop_sequences: ["e"] }],
  },
  "/v1/responses": {
    base: { model, input: ask, max_output_tokens: 120, temperature: 0 },
    with: [{}, effort, {
      tools: [{ type: "function", name, description, parameters, strict: false }],
      tool_choice: "required", ...effort,
    }, { tools: [{ type: "function", name, description, parameters, strict: false }] },
    { max_output_tokens: 16 }],
  },
};
// What must have come among the events, so that nothing is held against a schema in vain.
const expected = {
  "/v1/messages": [
    "message_start", "content_block_start", "content_block_delta", "content_block_stop",
    "message_delta", "message_stop"],
  "/v1/responses": [
    "created", "in_progress", "completed", "incomplete", "output_item.added", "output_item.done",
    "content_part.added", "content_part.done", "output_text.delta", "output_text.done",
    "reasoning_text.delta", "reasoning_text.done", "function_call_arguments.delta",
    "function_call_arguments.done"].map((t) => "response." + t),
};

for (const [path, { base, with: ways }] of Object.entries(asked)) {
  await test(`answers and events of ${path}`, async () => {
    const seen = new Set(), blocks = new Set();
    for (const way of ways) {
      const body = { ...base, ...way };
      const whole = await (await post(path, body)).json();
      fits(schemaOf(path, "application/json"), whole);
      for (const part of whole.content ?? whole.output ?? [])
        blocks.add(part.type);
      const events = await streamOf(path, { ...body, stream_options: path.endsWith("completions")
        ? { include_usage: true } : undefined });
      assert.ok(events.length >= 2);
      for (const [event, data] of events) {
        fits(schemaOf(path, "text/event-stream"), data);
        if (expected[path])
          assert.equal(event, data.type);
        seen.add(data.type);
      }
    }
    for (const type of expected[path] ?? [])
      assert.ok(seen.has(type), `${type} never came`);
    for (const type of { "/v1/messages": ["text", "thinking", "tool_use"],
                         "/v1/responses": ["message", "reasoning", "function_call"] }[path] ?? [])
      assert.ok(blocks.has(type), `${type} never came`);
  });
}

await test("what is not so does not fit", async () => {
  const bad = [
    ["MessageEvent", { type: "message_stop", more: 1 }],
    ["MessageEvent", { type: "content_block_delta", index: 0, delta: { type: "text_delta" } }],
    ["ResponseEvent", { type: "response.output_text.delta", sequence_number: 1, delta: "x" }],
    ["MessageBlock", { type: "thinking", thinking: "x" }],
    ["ResponseItem", { id: "x", type: "message", status: "done", role: "assistant", content: [] }],
  ];
  for (const [schema, value] of bad)
    assert.throws(() => fits(schema, value), schema);
});

console.log("end");
