"""POST /completion, /completions and /infill, and GET /props, as llama-server has them."""
