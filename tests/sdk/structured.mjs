// Structured outputs through OpenAI's SDK, validated by ajv: node structured.mjs http://host/v1
import assert from "node:assert/strict";
import Ajv from "ajv/dist/2020.js";
import OpenAI from "openai";
import { ask, baseURL, description, errorOf, model, name, test } from "./common.mjs";

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const ajv = new Ajv({ strict: false, validateFormats: false });
const messages = [{ role: "user", content: ask }];
const off = { thinking: { type: "disabled" } };

const report = {
  type: "object",
  properties: {
    city: { type: "string", pattern: "^[A-Z][a-z]+$", maxLength: 12 },
    celsius: { type: "integer", minimum: -60, maximum: 60 },
    sky: { enum: ["clear", "rain", null] },
    hours: { type: "array", items: { type: "integer", multipleOf: 6 }, maxItems: 3, uniqueItems: true },
  },
  required: ["city", "celsius", "sky", "hours"],
  additionalProperties: false,
};
const tree = {
  $ref: "#/$defs/node",
  $defs: {
    node: {
      type: "object",
      properties: {
        value: { type: "boolean" },
        left: { anyOf: [{ $ref: "#/$defs/node" }, { type: "null" }] },
      },
      required: ["value", "left"],
      additionalProperties: false,
    },
  },
};
const kinds = {
  oneOf: ["square", "circle"].map((kind) => ({
    type: "object",
    properties: { kind: { const: kind }, size: { type: "integer", minimum: 1, maximum: 99 } },
    required: ["kind", "size"],
    additionalProperties: false,
  })),
};

function format(schema) {
  return { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
}

function judge(schema, text) {
  const validate = ajv.compile(schema);
  assert.ok(validate(JSON.parse(text)), `${text}: ${ajv.errorsText(validate.errors)}`);
}

for (const [what, schema] of Object.entries({ report, tree, kinds })) {
  const body = { model, messages, max_tokens: 300, response_format: format(schema), ...off };
  await test(`${what}: an answer of the schema`, async () => {
    for (const temperature of [0, 1, 2]) {
      const c = await client.chat.completions.create({ ...body, temperature, seed: 5 });
      if (c.choices[0].finish_reason === "stop") judge(schema, c.choices[0].message.content);
      else assert.equal(c.choices[0].finish_reason, "length");
    }
  });
  await test(`${what}: streamed, two choices`, async () => {
    const texts = ["", ""], ends = [];
    const stream = await client.chat.completions.create({ ...body, n: 2, seed: 3, stream: true });
    for await (const chunk of stream)
      for (const c of chunk.choices) {
        texts[c.index] += c.delta.content ?? "";
        if (c.finish_reason) ends[c.index] = c.finish_reason;
      }
    for (const i of [0, 1]) if (ends[i] === "stop") judge(schema, texts[i]);
    assert.ok(ends.includes("stop"));
  });
}

await test("a strict tool's arguments are of its schema", async () => {
  const tool = { type: "function", function: { name, description, strict: true, parameters: report } };
  const c = await client.chat.completions.create({
    model, messages, tools: [tool], tool_choice: "required", max_tokens: 300, seed: 1, ...off,
  });
  judge(report, c.choices[0].message.tool_calls[0].function.arguments);
});

await test("/v1/responses with text.format", async () => {
  const r = await client.responses.create({
    model, input: ask, max_output_tokens: 300,
    text: { format: { type: "json_schema", name: "answer", strict: true, schema: kinds } },
    ...off,
  });
  judge(kinds, r.output_text);
});

await test("a schema that cannot be kept is refused with its keyword and place", async () => {
  const schema = { type: "object", properties: { a: { type: "array", not: { uniqueItems: true } } } };
  const e = await errorOf(client.chat.completions.create({
    model, messages, response_format: format(schema), ...off,
  }));
  assert.equal(e.status, 400);
  assert.equal(e.param, "response_format.json_schema.schema");
  assert.match(e.message, /uniqueItems at #\/properties\/a\/not/);
});

console.log("end");
