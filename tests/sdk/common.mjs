// What the SDKs' tests share: the question that the bundled model was trained on, its tool.
// Each file prints "ok name" or "FAIL name: why" a test, then "end".
import assert from "node:assert/strict";
import Ajv from "ajv";

export const baseURL = process.argv[2]; // http://127.0.0.1:8000/v1
export const model = "ember";
export const ask = "What is the weather in Paris?";
export const weather = '{"temperature": 21, "sky": "clear"}';
export const name = "get_weather";
export const description = "Get the current weather in a city.";
export const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};

// A form that the model would hardly keep by itself; what a strict schema may say, and bounds.
export const report = {
  type: "object",
  properties: {
    city: { type: "string", minLength: 1, maxLength: 24 },
    sky: { enum: ["clear", "cloudy", "rain"] },
    degrees: { type: "integer", minimum: -40, maximum: 50 },
    wind: { anyOf: [{ type: "number", minimum: 0, maximum: 99 }, { type: "null" }] },
    days: {
      type: "array", minItems: 1, maxItems: 2,
      items: {
        type: "object",
        properties: { name: { type: "string", pattern: "^[A-Z][a-z]{2}$" }, dry: { type: "boolean" } },
        required: ["name", "dry"], additionalProperties: false,
      },
    },
  },
  required: ["city", "sky", "degrees", "wind", "days"],
  additionalProperties: false,
};
const check = new Ajv({ allErrors: true }).compile(report);
export function fitsReport(value) {
  assert.ok(check(value), `${JSON.stringify(value)}: ${JSON.stringify(check.errors)}`);
}

export async function test(title, run) {
  try {
    await run();
    console.log("ok " + title);
  } catch (e) {
    console.log(`FAIL ${title}: ${e.stack ?? e}`);
  }
}

// The error that a promise ends with.
export async function errorOf(promise) {
  try {
    await promise;
  } catch (e) {
    return e;
  }
  assert.fail("no error");
}
