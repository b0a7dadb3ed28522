// What the tours with the published JavaScript client share. SHOAL_HTTP: host:port of the server; SHOAL_AUTH and SHOAL_CREDENTIALS as
// for the Python clients.

import { randomUUID } from "node:crypto";
import { after, beforeEach } from "node:test";
import { AdminClient, ChromaClient } from "chromadb";

const [host, port] = process.env.SHOAL_HTTP.split(":");
const credentials = process.env.SHOAL_CREDENTIALS ?? "";
const headers = {
  none: {},
  token: { Authorization: `Bearer ${credentials}` },
  "x-chroma-token": { "X-Chroma-Token": credentials },
  basic: { Authorization: `Basic ${btoa(credentials)}` },
}[process.env.SHOAL_AUTH ?? "none"];

export const tenant = "default_tenant";
export const server = { host, port: Number(port), ssl: false, headers };
export const admin = new AdminClient(server);

export const ids = ["a", "b", "c", "d"];
export const embeddings = [[1, 0], [0, 1], [1, 1], [3, 3]];
export const documents = ["red fish", "blue fish", "red sky", "Green 42"];
export const metadatas = [
  { n: 1, color: "red", warm: true, tags: ["x", "y"] },
  { n: 2, color: "blue", weight: 0.5, tags: ["x"] },
  { n: 3, color: "red", weight: 1.5 },
  { color: "green" },
];

// The client of each test, with a database of its own; all of them are deleted at the end.
export let client;
const databases = [];

beforeEach(async () => {
  const database = `tour-js-${randomUUID()}`;
  databases.push(database);
  await admin.createDatabase({ name: database, tenant });
  client = new ChromaClient({ ...server, tenant, database });
});

after(async () => {
  for (const name of databases) {
    await admin.deleteDatabase({ name, tenant });
  }
});

export const create = (name = "things", more = {}) =>
  client.createCollection({ name, embeddingFunction: null, ...more });

export async function filled(more = {}) {
  const collection = await create("things", more);
  await collection.add({ ids, embeddings, documents, metadatas });
  return collection;
}
