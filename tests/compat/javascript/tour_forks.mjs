// Copies of collections, with the published JavaScript client: run by `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { filled } from "./shared.mjs";

test("fork", async () => {
  const source = await filled();
  const fork = await source.fork({ name: "copy" });
  await fork.delete({ ids: ["a"] });
  assert.deepEqual([await source.count(), await fork.count()], [4, 3]);
  assert.equal(await source.forkCount(), 1);
});

