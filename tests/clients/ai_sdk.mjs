// Vercel's AI SDK against `URL MODEL`: a stream with a tool, and an object by its schema.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { jsonSchema, streamText, tool } from "ai";

const [url, model] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "picospec", baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true,
});
const weather = tool({
  description: "Return the weather of a city",
  inputSchema: jsonSchema({
    type: "object", properties: { city: { type: "string" } }, required: ["city"],
    additionalProperties: false,
  }),
});
const result = streamText({
  model: provider(model), temperature: 0, maxOutputTokens: 96, maxRetries: 0,
  tools: { weather }, toolChoice: { type: "tool", toolName: "weather" },
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
});
const kinds = new Set();
for await (const part of result.fullStream) {
  if (part.type === "error") throw part.error;
  kinds.add(part.type);
}
const calls = (await result.toolCalls).map(({ toolName, input }) => ({ toolName, input }));
const usage = await result.usage;
console.log(JSON.stringify({
  kinds: [...kinds], calls, finish: await result.finishReason, tokens: usage.totalTokens,
}));
