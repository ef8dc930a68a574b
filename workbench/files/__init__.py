"""Files and text: folders that appear whole, YAML and JSON as people write them, what may reach a terminal."""
