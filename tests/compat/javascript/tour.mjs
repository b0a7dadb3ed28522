// The tour with the published JavaScript client: run by `node --test`.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import {
  ChromaClient,
  ChromaClientError,
  ChromaNotFoundError,
  ChromaUniqueError,
  ChromaValueError,
  GroupBy,
  K,
  Knn,
  MinK,
  ReadLevel,
  Rrf,
  Schema,
  Search,
  SparseVectorIndexConfig,
  Val,
  registerEmbeddingFunction,
} from "chromadb";
import { admin, client, create, documents, embeddings, filled, ids, metadatas, server, tenant } from "./shared.mjs";

// Counts of the letters a to z.
class Letters {
  name = "letters_js";
  async generate(texts) {
    return texts.map((text) => [..."abcdefghijklmnopqrstuvwxyz"].map((letter) => text.split(letter).length - 1));
  }
  getConfig() {
    return { alphabet: "a-z" };
  }
  static buildFromConfig() {
    return new Letters();
  }
}
registerEmbeddingFunction("letters_js", Letters);

test("the server answers for itself", async () => {
  assert.ok((await client.heartbeat()) > 1.7e18);
  assert.equal(await client.version(), "1.0.0");
  const identity = await client.getUserIdentity();
  assert.equal(identity.tenant, (process.env.SHOAL_AUTH ?? "none") === "none" ? tenant : "*");
  assert.ok((await client.getMaxBatchSize()) > 0);
  assert.equal(await client.supportsBase64Encoding(), true);
});

test("a client that names neither tenant nor database asks who it is", async () => {
  const plain = new ChromaClient(server);
  assert.equal(typeof (await plain.countCollections()), "number");
  assert.equal(plain.tenant, tenant);
});

test("tenants and databases", async () => {
  const name = `tenant-${randomUUID()}`;
  await admin.createTenant({ name });
  assert.equal(JSON.stringify(await admin.getTenant({ name })).includes(name), true);
  await admin.createDatabase({ name: "one", tenant: name });
  await admin.createDatabase({ name: "two", tenant: name });
  await assert.rejects(admin.createDatabase({ name: "one", tenant: name }), ChromaUniqueError);
  const listed = await admin.listDatabases({ tenant: name, limit: 10, offset: 0 });
  assert.deepEqual(listed.map((found) => found.name).sort(), ["one", "two"]);
  assert.equal((await admin.getDatabase({ name: "one", tenant: name })).tenant, name);
  await admin.deleteDatabase({ name: "one", tenant: name });
  await assert.rejects(admin.getDatabase({ name: "one", tenant: name }), ChromaNotFoundError);
  await admin.deleteDatabase({ name: "two", tenant: name });
});

test("create, get, get or create, list, count, delete collections", async () => {
  const made = await create("things", { metadata: { topic: "fish", n: 1 }, configuration: { hnsw: { space: "cosine" } } });
  const got = await client.getCollection({ name: "things" });
  assert.deepEqual([got.id, got.metadata], [made.id, { topic: "fish", n: 1 }]);
  assert.equal(got.configuration.hnsw.space, "cosine");
  const again = await client.getOrCreateCollection({ name: "things", metadata: { other: 1 }, embeddingFunction: null });
  assert.deepEqual([again.id, again.metadata], [made.id, { topic: "fish", n: 1 }]);
  await client.getOrCreateCollection({ name: "more", embeddingFunction: null });
  assert.equal(await client.countCollections(), 2);
  assert.deepEqual((await client.listCollections()).map((found) => found.name).sort(), ["more", "things"]);
  assert.equal((await client.listCollections({ limit: 1, offset: 1 })).length, 1);
  await client.deleteCollection({ name: "things" });
  await assert.rejects(client.getCollection({ name: "things" }), ChromaNotFoundError);
  await assert.rejects(made.count(), ChromaNotFoundError);
});

test("modify a collection", async () => {
  const made = await create("things", { metadata: { a: 1, b: 2 } });
  await made.modify({ name: "renamed", metadata: { c: 3 }, configuration: { hnsw: { ef_search: 77 } } });
  const got = await client.getCollection({ name: "renamed" });
  assert.deepEqual([got.id, got.metadata, got.configuration.hnsw.ef_search], [made.id, { c: 3 }, 77]);
});

test("a schema with a sparse index", async () => {
  const schema = new Schema();
  schema.createIndex(new SparseVectorIndexConfig(), "terms");
  const collection = await create("things", { schema });
  const terms = [
    { indices: [1, 5], values: [1, 2] },
    { indices: [5, 9], values: [4, 1] },
  ];
  await collection.add({ ids: ["a", "b"], embeddings: [[1], [2]], metadatas: terms.map((vector) => ({ terms: vector })) });
  const got = await collection.get({ ids: ["a"] });
  assert.deepEqual(got.metadatas[0].terms, terms[0]);
  const search = new Search().rank(Knn({ query: { indices: [5, 9], values: [1, 1] }, key: "terms" })).limit(2);
  assert.deepEqual((await collection.search(search)).ids, [["b", "a"]]);
});

test("add and get", async () => {
  const collection = await filled();
  assert.equal(await collection.count(), 4);
  const got = await collection.get({ include: ["embeddings", "documents", "metadatas", "uris"] });
  assert.deepEqual([got.ids, got.documents, got.metadatas], [ids, documents, metadatas]);
  assert.deepEqual(got.embeddings, embeddings);
  assert.deepEqual((await collection.get({ ids: ["d", "a"] })).ids, ["a", "d"]);
  assert.deepEqual((await collection.get({ limit: 2, offset: 1 })).ids, ["b", "c"]);
  assert.deepEqual((await collection.peek({ limit: 1 })).ids, ["a"]);
  await collection.add({ ids: ["a"], embeddings: [[9, 9]], documents: ["x"] });
  assert.deepEqual((await collection.get({ ids: ["a"] })).documents, ["red fish"]);
});

test("where", async () => {
  const collection = await filled();
  const cases = [
    [{ color: "red" }, "ac"],
    [{ color: { $ne: "red" } }, "bd"],
    [{ n: { $gt: 1 } }, "bc"],
    [{ n: { $gte: 2 } }, "bc"],
    [{ n: { $lt: 2 } }, "a"],
    [{ n: { $lte: 2 } }, "ab"],
    [{ weight: { $gt: 0.5 } }, "c"],
    [{ warm: true }, "a"],
    [{ color: { $in: ["blue", "green"] } }, "bd"],
    [{ color: { $nin: ["blue", "green"] } }, "ac"],
    [{ tags: { $contains: "y" } }, "a"],
    [{ tags: { $not_contains: "y" } }, "bcd"],
    [{ $and: [{ color: "red" }, { n: { $gt: 1 } }] }, "c"],
    [{ $or: [{ color: "green" }, { $and: [{ color: "red" }, { n: 1 }] }] }, "ad"],
  ];
  for (const [where, expected] of cases) {
    assert.equal((await collection.get({ where })).ids.join(""), expected, JSON.stringify(where));
  }
});

test("where document", async () => {
  const collection = await filled();
  const cases = [
    [{ $contains: "fish" }, "ab"],
    [{ $not_contains: "fish" }, "cd"],
    [{ $regex: "^red" }, "ac"],
    [{ $not_regex: "[0-9]+" }, "abc"],
    [{ $and: [{ $contains: "red" }, { $contains: "sky" }] }, "c"],
    [{ $or: [{ $contains: "Green" }, { $contains: "blue" }] }, "bd"],
  ];
  for (const [whereDocument, expected] of cases) {
    assert.equal((await collection.get({ whereDocument })).ids.join(""), expected, JSON.stringify(whereDocument));
  }
});

test("query", async () => {
  const collection = await filled();
  const found = await collection.query({
    queryEmbeddings: [[1, 0.1], [3, 3]],
    nResults: 2,
    include: ["documents", "metadatas", "distances", "embeddings"],
  });
  assert.deepEqual(found.ids, [["a", "c"], ["d", "c"]]);
  assert.ok(Math.abs(found.distances[0][0] - 0.01) < 1e-5);
  assert.deepEqual(found.documents[1], ["Green 42", "red sky"]);
  assert.deepEqual(found.metadatas[0][0], metadatas[0]);
  assert.deepEqual(found.embeddings[1][0], [3, 3]);
  const some = await collection.query({ queryEmbeddings: [[0, 0]], ids: ["c", "d"], where: { color: "red" }, nResults: 50 });
  assert.deepEqual(some.ids, [["c"]]);
});

test("update, upsert, delete", async () => {
  const collection = await filled();
  await collection.update({ ids: ["a", "absent"], metadatas: [{ n: 10, more: "x" }, { n: 1 }] });
  assert.deepEqual((await collection.get({ ids: ["a", "absent"] })).metadatas, [{ ...metadatas[0], n: 10, more: "x" }]);
  await collection.upsert({ ids: ["d", "e"], embeddings: [[4, 4], [5, 5]], documents: ["changed", "added"] });
  assert.deepEqual((await collection.get({ ids: ["d", "e"] })).documents, ["changed", "added"]);
  assert.deepEqual((await collection.delete({ ids: ["e"] })).deleted, 1);
  assert.deepEqual((await collection.delete({ where: { color: "red" }, limit: 1 })).deleted, 1);
  await collection.delete({ whereDocument: { $contains: "changed" } });
  assert.deepEqual((await collection.get()).ids, ["b", "c"]);
});

test("documents that the client embeds", async () => {
  const made = await client.createCollection({ name: "letters", embeddingFunction: new Letters() });
  await made.add({ ids: ["a", "b"], documents: ["aaa", "bbb"] });
  const got = await client.getCollection({ name: "letters" });
  const found = await got.query({ queryTexts: ["abb"], nResults: 2 });
  assert.deepEqual([found.ids, found.distances], [[["b", "a"]], [[2, 8]]]);
});

test("search", async () => {
  const collection = await filled();
  const near = new Search().rank(Knn({ query: [0, 0] })).limit(2).select(K.DOCUMENT, K.SCORE, "n");
  const result = await collection.search(near, { readLevel: ReadLevel.INDEX_AND_WAL });
  assert.deepEqual(result.ids, [["a", "b"]]);
  assert.deepEqual(result.documents, [["red fish", "blue fish"]]);
  assert.deepEqual(result.scores, [[1, 1]]);
  assert.deepEqual(result.metadatas, [[{ n: 1 }, { n: 2 }]]);
  assert.equal(result.rows()[0][1].document, "blue fish");
  const filter = new Search().where(K("color").eq("red").and(K.DOCUMENT.contains("sky")));
  const grouped = new Search()
    .rank(Knn({ query: [0, 0] }))
    .groupBy(new GroupBy([K("color")], new MinK([K.SCORE], 1)))
    .limit(10);
  const fused = new Search()
    .rank(
      Rrf({
        ranks: [Knn({ query: [0, 0], returnRank: true }), Knn({ query: [3, 3], returnRank: true })],
        weights: [1, 2],
      }),
    )
    .limit(1);
  const sum = new Search().rank(Knn({ query: [3, 3] }).multiply(2).add(Val(1))).limit(1, 1).select(K.SCORE);
  const several = await collection.search([filter, grouped, fused, sum]);
  assert.deepEqual(several.ids, [["c"], ["a", "b", "d"], ["d"], ["c"]]);
  assert.deepEqual(several.scores[3], [17]);
});

test("indexing status and read levels", async () => {
  const collection = await filled();
  assert.equal((await collection.getIndexingStatus()).total_ops, 4);
  assert.equal(await collection.count({ readLevel: ReadLevel.INDEX_AND_WAL }), 4);
});

test("errors by their types", async () => {
  const collection = await filled();
  await assert.rejects(create("things"), ChromaUniqueError);
  await assert.rejects(create("a"), ChromaClientError);
  await assert.rejects(client.getCollection({ name: "nothing" }), ChromaNotFoundError);
  await assert.rejects(collection.add({ ids: ["z"], embeddings: [[1, 2, 3]] }), (error) => {
    assert.ok(error instanceof ChromaClientError);
    assert.match(error.message, /Collection expecting embedding with dimension of 2, got 3/);
    return true;
  });
  await assert.rejects(collection.query({ queryEmbeddings: [[1]] }), ChromaClientError);
  await assert.rejects(collection.get({ whereDocument: { $regex: "[" } }), ChromaClientError);
  await assert.rejects(collection.add({ ids: ["z", "z"], embeddings: [[1, 2], [1, 2]] }), ChromaValueError);
  await assert.rejects(collection.add({ ids: ["z"], embeddings: [[1, 2], [1, 2]] }), ChromaValueError);
  assert.equal(await collection.count(), 4);
});

test("any text, and numbers as JavaScript has them", async () => {
  const collection = await create();
  const texts = ["Война и мир", "吾輩は猫である", "🦈 shoal of 🐟", '"quoted" \\ back'];
  const numbers = [Number.MAX_SAFE_INTEGER, -1, 0.1, 1e300];
  const given = texts.map((text, at) => ({ [text]: text, n: numbers[at] }));
  await collection.add({ ids: texts, embeddings: texts.map((_, at) => [at, 0.5]), documents: texts, metadatas: given });
  const got = await collection.get();
  assert.deepEqual([got.ids, got.documents, got.metadatas], [texts, texts, given]);
  assert.deepEqual((await collection.get({ whereDocument: { $contains: "猫" } })).ids, [texts[1]]);
});

test("batches up to the largest", async () => {
  const collection = await create();
  const most = await client.getMaxBatchSize();
  const many = Array.from({ length: most + 1 }, (_, at) => `${at}`);
  const vectors = many.map((_, at) => [at, at / 2]);
  await collection.add({ ids: many.slice(0, most), embeddings: vectors.slice(0, most) });
  await assert.rejects(collection.add({ ids: many, embeddings: vectors }), ChromaValueError);
  assert.equal(await collection.count(), most);
});
