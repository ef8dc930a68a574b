"""Makes the built-in models: lessons of the built-in world, batches, tokenizer."""
