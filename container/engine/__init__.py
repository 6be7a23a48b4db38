"""The process that owns the device: names, queues, batches."""
