"""querynode: answers reads of shards at one snapshot, from segments and the tail."""
