"""Planning: which input goes into which shard, and what that will cost; pure results."""
