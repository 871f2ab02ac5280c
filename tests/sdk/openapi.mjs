// /openapi.json against what the server really takes and gives, with ajv:
// node openapi.mjs http://127.0.0.1:8000/v1
import assert from "node:assert/strict";
import Ajv from "ajv/dist/2020.js";
import { baseURL, test } from "./common.mjs";

const root = baseURL.replace(/\/v1$/, "");
const doc = await (await fetch(root + "/openapi.json")).json();
const ajv = new Ajv({ strict: false, allErrors: true });
ajv.addSchema(doc, "doc");
const validator = (name) => ajv.getSchema(`doc#/components/schemas/${name}`);
const fits = (name, value) => {
  const check = validator(name);
  assert.ok(check, name);
  assert.ok(check(value), `${name}: ${JSON.stringify(check.errors)} ${JSON.stringify(value)}`);
};
const send = async (path, body, method = "POST") => {
  const r = await fetch(root + path, {
    method, headers: { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return { status: r.status, value: await r.json() };
};

const user = [{ role: "user", content: "Hi" }];
const good = {
  "/v1/chat/completions": { messages: user, max_tokens: 3 },
  "/v1/completions": { prompt: "Hi", max_tokens: 3 },
  "/v1/messages": { messages: user, max_tokens: 3 },
  "/v1/messages/count_tokens": { messages: user },
  "/v1/responses": { input: "Hi", max_output_tokens: 3 },
  "/tokenize": { prompt: "Hi" },
  "/detokenize": { tokens: [1, 2] },
};
const operations = Object.entries(doc.paths).flatMap(([path, item]) =>
  Object.entries(item).map(([method, op]) => ({ path, method: method.toUpperCase(), op })));
const name = (content) =>
  Object.values(content)[0].schema.$ref.replace("#/components/schemas/", "");

await test("the document holds together", () => {
  assert.equal(doc.openapi, "3.1.0");
  assert.ok(operations.length >= 15);
  const refs = JSON.stringify(doc).match(/"\$ref":"[^"]*"/g);
  assert.ok(refs.length > 40);
  for (const ref of new Set(refs)) {
    const path = JSON.parse(`{${ref}}`).$ref.replace(/^#\//, "").split("/");
    assert.ok(path.reduce((at, key) => at?.[key], doc), ref);
  }
  const withBody = operations.filter((o) => o.op.requestBody).map((o) => o.path);
  assert.deepEqual(withBody.toSorted(), Object.keys(good).toSorted());
});

await test("every answer is as it says", async () => {
  const made = await send("/v1/responses", good["/v1/responses"]);
  const streamed = await (await fetch(root + "/v1/completions", {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...good["/v1/completions"], stream: true, resumable: true }),
  })).text();
  const ids = {
    "/v1/responses/{id}": made.value.id, "/v1/models/{id}": made.value.model,
    "/v1/streams/{id}": streamed.match(/"id":"(cmpl-[^"]*)"/)[1],
  };
  let n = 0;
  for (const { path, method, op } of operations.toSorted((a, b) => (a.method < b.method ? 1 : -1))) {
    const failing = name(op.responses.default?.content ?? op.responses["501"].content);
    const at = path.replace("{id}", ids[path] ?? "none");
    const media = Object.keys(op.responses[200]?.content ?? {})[0] ?? "application/json";
    if (media !== "application/json") {
      const other = await fetch(root + at);
      assert.equal(other.status, 200, at);
      assert.equal(other.headers.get("content-type").split(";")[0], media, at);
      assert.ok((await other.text()).length > 100);
      n++;
      continue;
    }
    const { status, value } = await send(at, good[path], method);
    fits(status === 200 ? name(op.responses[200].content) : failing, value);
    assert.equal(status, op.responses[501] ? 501 : path.endsWith("cancel") ? 404 : 200,
                 `${method} ${path}`);
    n++;
  }
  assert.ok(n >= 15);
});

await test("chunks are as it says", async () => {
  const r = await fetch(root + "/v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({
      ...good["/v1/chat/completions"], stream: true, stream_options: { include_usage: true },
    }),
  });
  const lines = (await r.text()).split("\n").filter((l) => l.startsWith("data: {"));
  assert.ok(lines.length >= 4);
  for (const line of lines)
    fits("ChatCompletionChunk", JSON.parse(line.slice(6)));
});

// Values of every type, and just beyond every bound: where the schema says no the server says 400
// and names the field; where it says yes the server never complains of the type.
const samples = [true, 7, 0.25, "x", [], {}];
for (const path of Object.keys(good)) {
  const schemaName = name(doc.paths[path].post.requestBody.content);
  await test(`fields of ${path}`, async () => {
    const check = validator(schemaName);
    assert.ok(check(good[path]), JSON.stringify(check.errors));
    let refused = 0;
    const fields = Object.entries(doc.components.schemas[schemaName].properties);
    for (const [field, rule] of fields) {
      const values = [...samples];
      if (rule.minimum !== undefined)
        values.push(rule.minimum - 1);
      if (rule.exclusiveMinimum !== undefined)
        values.push(rule.exclusiveMinimum);
      if (rule.maximum !== undefined && rule.maximum < 1e15)
        values.push(rule.maximum + 1);
      for (const value of values) {
        const body = { ...good[path], [field]: value };
        if (check(body))
          continue;
        const { status, value: said } = await send(path, body);
        const message = `${field} ${JSON.stringify(value)}: ${JSON.stringify(said)}`;
        assert.equal(status, 400, message);
        if (path.startsWith("/v1/messages")) {
          fits("MessagesError", said);
          assert.ok(said.error.message.startsWith(field), message);
        } else {
          fits("Error", said);
          assert.ok(said.error.param.split(".")[0] === field, message);
          assert.equal(said.error.code, "invalid_value", message);
        }
        refused++;
      }
    }
    for (const field of doc.components.schemas[schemaName].required ?? []) {
      const { [field]: gone, ...body } = good[path];
      assert.equal(check(body), false);
      const { status, value: said } = await send(path, body);
      assert.equal(status, 400);
      assert.ok(said.error.message.startsWith(field));
    }
    assert.ok(refused > 4 * fields.length, `${refused} of ${fields.length} fields`);
  });
}

console.log("end");
