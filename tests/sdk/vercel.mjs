// Chat through Vercel's AI SDK and its provider for OpenAI-compatible servers.
import assert from "node:assert/strict";
import { createOpenAICompatible, OpenAICompatibleChatLanguageModel } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamObject, streamText, tool } from "ai";
import {
  ask, baseURL, description, errorOf, fitsReport, model, name, parameters, report, test, weather,
} from "./common.mjs";

const provider = createOpenAICompatible({ name: "gaze", baseURL, apiKey: "none" });
const asked = [];
const tools = {
  [name]: tool({
    description,
    parameters: jsonSchema(parameters),
    execute: async ({ city }) => (asked.push(city), JSON.parse(weather)),
  }),
};
const body = { model: provider(model), prompt: ask, temperature: 0, maxTokens: 200, maxRetries: 0 };

await test("an answer", async () => {
  const r = await generateText({ ...body, prompt: "Hello!" });
  assert.ok(r.text.length > 0);
  assert.ok(r.usage.promptTokens > 0 && r.usage.completionTokens > 0);
});

await test("a stream is the same answer", async () => {
  const whole = await generateText(body);
  let text = "";
  const stream = streamText(body);
  for await (const piece of stream.textStream)
    text += piece;
  assert.equal(text, whole.text);
  assert.equal(await stream.finishReason, whole.finishReason);
});

for (const streams of [false, true]) {
  await test(`a loop of two steps${streams ? ", streamed" : ""}`, async () => {
    asked.length = 0;
    const forced = { ...body, tools, toolChoice: { type: "tool", toolName: name } };
    const first = streams ? streamText(forced) : await generateText(forced);
    if (streams)
      await first.consumeStream();
    const { messages } = await first.response;
    assert.deepEqual(asked, ["Paris"]);
    const { prompt, ...rest } = body;
    const second = await generateText({
      ...rest, tools, messages: [{ role: "user", content: prompt }, ...messages],
    });
    assert.match(second.text, /21/);
    assert.equal(second.finishReason, "stop");
  });
}

await test("structured output", async () => {
  const strict = new OpenAICompatibleChatLanguageModel(model, {}, {
    provider: "gaze", url: ({ path }) => baseURL + path, headers: () => ({}),
    defaultObjectGenerationMode: "json", supportsStructuredOutputs: true,
  });
  const wish = { ...body, model: strict, maxTokens: 300, schema: jsonSchema(report) };
  const whole = await generateObject(wish);
  fitsReport(whole.object);
  const stream = streamObject(wish);
  for await (const piece of stream.partialObjectStream)
    assert.equal(typeof piece, "object");
  assert.deepEqual(await stream.object, whole.object);
});

await test("reasoning", async () => {
  const r = await generateText({
    ...body, prompt: "What is 3 + 4?", maxTokens: 400,
    providerOptions: { gaze: { thinking: { type: "enabled" } } },
  });
  assert.ok(r.reasoning.length > 0);
  assert.ok(!r.text.includes("</think>"));
});

await test("errors", async () => {
  const e = await errorOf(generateText({ ...body, temperature: 3 }));
  assert.equal(e.statusCode, 400);
  assert.equal(e.data.error.param, "temperature");
  const nope = await errorOf(generateText({ ...body, model: provider("nope") }));
  assert.equal(nope.statusCode, 404);
  assert.equal(nope.data.error.code, "model_not_found");
});

console.log("end");
