// Chat through LangChain's ChatOpenAI.
import assert from "node:assert/strict";
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import {
  ask, baseURL, description, errorOf, fitsReport, model, name, report, test, weather,
} from "./common.mjs";

const make = (more) => new ChatOpenAI({
  model, apiKey: "none", configuration: { baseURL }, temperature: 0, maxTokens: 200, maxRetries: 0,
  ...more,
});
const chat = make();
const look = tool(async () => weather, {
  name, description, schema: z.object({ city: z.string() }),
});

await test("an answer", async () => {
  const m = await chat.invoke([new HumanMessage("Hello!")]);
  assert.ok(m.content.length > 0);
  assert.ok(m.usage_metadata.input_tokens > 0 && m.usage_metadata.output_tokens > 0);
});

await test("a stream is the same answer", async () => {
  const whole = await chat.invoke(ask);
  let text = "";
  for await (const piece of await chat.stream(ask))
    text += piece.content;
  assert.equal(text, whole.content);
});

await test("a loop of two steps", async () => {
  const first = await chat.bindTools([look], { tool_choice: name }).invoke(ask);
  const [call, ...others] = first.tool_calls;
  assert.deepEqual(others, []);
  assert.deepEqual([call.name, call.args], [name, { city: "Paris" }]);
  const result = await look.invoke(call);
  assert.ok(result instanceof ToolMessage && first instanceof AIMessage);
  const second = await chat.bindTools([look]).invoke([new HumanMessage(ask), first, result]);
  assert.match(second.content, /21/);
});

await test("a call, streamed", async () => {
  let all;
  for await (const piece of await chat.bindTools([look], { tool_choice: name }).stream(ask))
    all = all ? all.concat(piece) : piece;
  assert.deepEqual(all.tool_calls.map((c) => c.args), [{ city: "Paris" }]);
});

await test("structured output", async () => {
  const form = { title: "report", ...report };
  const wide = make({ maxTokens: 300 });
  fitsReport(await wide.withStructuredOutput(form, { method: "jsonSchema", strict: true })
    .invoke(ask));
  let last;
  for await (const piece of await wide.withStructuredOutput(form, { method: "jsonSchema" })
    .stream(ask))
    last = piece;
  fitsReport(last);
});

await test("errors", async () => {
  const e = await errorOf(make({ temperature: 3 }).invoke(ask));
  assert.deepEqual([e.status, e.param, e.code], [400, "temperature", "invalid_value"]);
  const nope = await errorOf(make({ model: "nope" }).invoke(ask));
  assert.equal(nope.status, 404);
});

console.log("end");
