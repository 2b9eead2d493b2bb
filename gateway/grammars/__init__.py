"""What an answer must keep to: as requests ask for it, and as a grammar in Lark."""
