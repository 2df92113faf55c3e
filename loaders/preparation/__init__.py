"""From raw video to training shards: stabilise, filter, cut into clips, pack."""
