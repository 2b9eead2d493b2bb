"""All rooms of the bench share these: prompts, hosts, results, speeds, and their files."""
