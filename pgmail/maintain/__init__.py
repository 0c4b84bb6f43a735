"""What whoever leads does on a clock: rescue, repair, wake, expire, fold, partitions."""
