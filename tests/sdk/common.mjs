// What the SDKs' tests share: the question that the bundled model was trained on, its tool.
// Each file prints "ok name" or "FAIL name: why" a test, then "end".
import assert from "node:assert/strict";

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
