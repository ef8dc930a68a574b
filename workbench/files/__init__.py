"""Files and text: atomic writes, validated YAML and JSON, text that is safe for terminals."""
