# Read by llama.cpp's own project() call: build the library alone, none of the tools around it.
# This takes a third of the time of the full build.
set(LLAMA_BUILD_COMMON OFF)
