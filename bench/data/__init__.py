"""What all rooms of the bench share: prompts, hosts, results, speeds, and their files."""
