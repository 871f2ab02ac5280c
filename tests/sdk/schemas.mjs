// Random schemas and documents as ajv judges them: node schemas.mjs seed count > lines.jsonl
//
// A line: {"schema": ..., "docs": [{"valid": true, "texts": [...]}]}. The texts of a document are
// all orders of its members, since a schema's order is the decoder's matter: of a valid document one
// has to be accepted, of an invalid one none. tests/unit/test_schema.c reads such lines.
import Ajv from "ajv/dist/2020.js";

let state = BigInt(process.argv[2] ?? 1);
const count = Number(process.argv[3] ?? 400);
function below(n) {
  state = (state * 6364136223846793005n + 1442695040888963407n) & ((1n << 64n) - 1n);
  return Number((state >> 33n) % BigInt(n));
}
const one = (list) => list[below(list.length)];
const maybe = (n) => below(n) === 0;
const some = (list) => list.filter(() => maybe(2));

const names = ["a", "ab", "b", "c"];
const strings = ["", "a", "b", "ab", "ba", "abc", "\"q\"", "é", "aaaa"];
const numbers = [0, 1, 2, 3, 4, 6, 7, 10, 12, 25, 100, -1, -2, -5, 0.5, 1.5, 2.25, -0.5, 0.1];
const patterns = ["^a", "b$", "^[ab]+$", "a.*b", "^.?$", "é"];
const scalars = [null, true, false, ...strings, ...numbers];

function value(depth) {
  const kind = below(depth > 0 ? 6 : 4);
  if (kind < 4) return one(scalars);
  if (kind === 4) return Array.from({ length: below(4) }, () => value(depth - 1));
  return Object.fromEntries(some(names).slice(0, 3).map((k) => [k, value(depth - 1)]));
}

// Of items ajv takes [] for one that contains when the item before it did.
const withoutContains = (s) =>
  JSON.parse(JSON.stringify(s, (key, value) => (key === "contains" ? undefined : value)));

function scalarWords(s) {
  const words = {
    minimum: () => one(numbers),
    maximum: () => one(numbers),
    exclusiveMinimum: () => one(numbers),
    exclusiveMaximum: () => one(numbers),
    multipleOf: () => one([1, 2, 3, 0.5, 0.25, 10]),
    minLength: () => below(3),
    maxLength: () => below(4),
    pattern: () => one(patterns),
  };
  for (const k of Object.keys(words)) if (maybe(6)) s[k] = words[k]();
}

function arrayWords(s, depth) {
  if (maybe(2)) s.items = withoutContains(schema(depth - 1));
  if (maybe(4)) s.prefixItems = Array.from({ length: 1 + below(2) }, () => schema(depth - 1));
  if (maybe(4)) s.minItems = below(3);
  if (maybe(4)) s.maxItems = below(4);
  if (maybe(8) && !s.prefixItems) s.uniqueItems = true; // there ajv goes by the type of items
  if (!s.prefixItems && maybe(10)) { // beside prefixItems ajv takes [] for one that contains
    s.contains = schema(depth - 1);
    if (maybe(2)) s.maxContains = 1 + below(2);
  }
  if (maybe(10)) s.unevaluatedItems = maybe(2) ? false : schema(depth - 1);
}

function objectWords(s, depth) {
  const sub = (list) => Object.fromEntries(list.map((k) => [k, schema(depth - 1)]));
  if (!maybe(4)) s.properties = sub(some(names));
  if (maybe(2)) s.required = some(names).slice(0, 2);
  if (maybe(3)) s.additionalProperties = maybe(2) ? false : schema(depth - 1);
  if (maybe(6)) s.patternProperties = sub([one(patterns)]);
  if (maybe(10)) s.propertyNames = maybe(2) ? { pattern: one(patterns) } : { maxLength: 1 };
  if (maybe(8)) s.minProperties = below(3);
  if (maybe(8)) s.maxProperties = below(4);
  if (maybe(12)) s.dependentRequired = { [one(names)]: [one(names)] };
  if (maybe(12)) s.dependentSchemas = sub([one(names)]);
  if (maybe(8)) s.unevaluatedProperties = maybe(2) ? false : schema(depth - 1);
}

function schema(depth) {
  if (depth <= 0 && maybe(6)) return maybe(4) ? false : true;
  const s = {};
  if (maybe(8)) s.enum = Array.from({ length: 1 + below(3) }, () => one(scalars));
  else if (maybe(20)) s.const = value(1);
  const types = ["string", "integer", "number", "boolean", "null", "array", "object"];
  if (!maybe(4)) s.type = maybe(4) ? some(types) : one(depth > 0 ? types.concat(types.slice(5)) : types);
  if (Array.isArray(s.type) && !s.type.length) delete s.type;
  const has = (t) => s.type === undefined || s.type === t || s.type.includes?.(t);
  if (has("string") || has("number") || has("integer")) scalarWords(s);
  if (depth > 0 && has("array")) arrayWords(s, depth);
  if (depth > 0 && has("object")) objectWords(s, depth);
  if (depth > 0) {
    const list = () => Array.from({ length: 2 + below(2) }, () => schema(depth - 1));
    if (maybe(7)) s.anyOf = list();
    if (maybe(8)) s.oneOf = list();
    if (maybe(8)) s.allOf = list();
    if (maybe(10)) s.not = schema(depth - 1);
    if (maybe(10)) {
      s.if = schema(depth - 1);
      if (!maybe(3)) s.then = schema(depth - 1);
      if (!maybe(3)) s.else = schema(depth - 1);
    }
  }
  // Of these ajv takes items for evaluated though they fail, and those of contains for not.
  if (s.oneOf || s.anyOf || s.if || s.contains) delete s.unevaluatedItems;
  // Of an if that fails beside then or else ajv takes the members for evaluated.
  if (s.if !== undefined && (s.then ?? s.else) !== undefined) delete s.unevaluatedProperties;
  // Where dependentSchemas has this keyword, too, ajv forgets what was evaluated beside it.
  if (s.unevaluatedProperties !== undefined)
    for (const d of Object.values(s.dependentSchemas ?? {})) delete d.unevaluatedProperties;
  return s;
}

// The same with all members in the opposite order.
function turned(v) {
  if (v === null || typeof v !== "object") return v;
  if (Array.isArray(v)) return v.map(turned);
  return Object.fromEntries(Object.entries(v).reverse().map(([k, x]) => [k, turned(x)]));
}

// Of larger ones not every order is told apart, see orders.c.
const hasLarge = (v) => v !== null && typeof v === "object" &&
  ((!Array.isArray(v) && Object.keys(v).length > 2) || Object.values(v).some(hasLarge));

// A value that has a fair chance to be valid.
function guess(s, depth) {
  if (typeof s !== "object" || maybe(8) || depth < 0) return value(1);
  if (s.enum && !maybe(6)) return one(s.enum);
  if ("const" in s) return s.const;
  for (const k of ["allOf", "anyOf", "oneOf"]) if (s[k] && maybe(2)) return guess(one(s[k]), depth - 1);
  let t = s.type ?? one(["string", "number", "array", "object"]);
  if (Array.isArray(t)) t = one(t);
  if (t === "null") return null;
  if (t === "boolean") return maybe(2);
  if (t === "integer" || t === "number") return one(numbers);
  if (t === "string") return one(strings);
  if (t === "array") {
    const own = s.prefixItems ?? [];
    const n = (s.minItems ?? 0) + below(3);
    const out = Array.from({ length: n }, (_, i) => guess(own[i] ?? s.items ?? {}, depth - 1));
    const item = n ? one(out) : null;
    if (s.uniqueItems && n && !hasLarge(item) && maybe(2)) out.push(turned(item));
    return out;
  }
  const out = {};
  for (const k of names)
    if (s.required?.includes(k) || maybe(3)) out[k] = guess(s.properties?.[k] ?? {}, depth - 1);
  if (maybe(6)) out.zz = value(0);
  return out;
}

function permutations(list) {
  if (list.length < 2) return [list];
  return list.flatMap((x, i) =>
    permutations([...list.slice(0, i), ...list.slice(i + 1)]).map((rest) => [x, ...rest]));
}

// All orders of all members, up to a bound; null: too many.
function texts(v) {
  if (v === null || typeof v !== "object") return [JSON.stringify(v)];
  const array = Array.isArray(v);
  let out = [];
  for (const keys of array ? [Object.keys(v)] : permutations(Object.keys(v))) {
    let heads = [""];
    for (const k of keys) {
      const more = texts(v[k]);
      if (!more || heads.length * more.length > 300) return null;
      const name = array ? "" : JSON.stringify(k) + ":";
      heads = heads.flatMap((h) => more.map((m) => h + (h ? "," : "") + name + m));
    }
    out = out.concat(heads.map((h) => (array ? `[${h}]` : `{${h}}`)));
    if (out.length > 300) return null;
  }
  return out;
}

const ajv = new Ajv({ strict: false, validateFormats: false });
// undefined where ajv itself trips: it does over members that only some branches of `if` have
function judge(validate, v) {
  try {
    return validate(v);
  } catch (e) {
    if (e instanceof TypeError) return undefined;
    throw e;
  }
}

for (let i = 0; i < count; i++) {
  const s = schema(2);
  const validate = ajv.compile(s);
  const docs = [];
  const seen = new Set();
  const n = { true: 0, false: 0 };
  for (let k = 0; k < 60; k++) {
    const v = guess(s, 3);
    const valid = judge(validate, v);
    const all = valid === undefined ? null : texts(v);
    if (!all || seen.has(all[0]) || n[valid] >= 6) continue;
    seen.add(all[0]);
    n[valid]++;
    docs.push({ valid, texts: all });
  }
  console.log(JSON.stringify({ schema: s, docs }));
}
