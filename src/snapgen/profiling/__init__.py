"""What models and training runs cost: parameters, multiply-accumulates, latency, memory, GPU-hours, storage."""
