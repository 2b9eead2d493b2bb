// Vercel's AI SDK against `URL MODEL` by the Responses API: a loop of two tools, whose calls it
// refers to by their ids.
import { createOpenAI } from "@ai-sdk/openai";
import { jsonSchema, stepCountIs, streamText, tool } from "ai";

const [url, model] = process.argv.slice(2);
const provider = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const called = [];
const answering = (name, argument, type, result) => tool({
  description: name,
  inputSchema: jsonSchema({ type: "object", properties: { [argument]: { type } } }),
  execute: async (input) => { called.push(`${name} ${input[argument]}`); return result; },
});
const result = streamText({
  model: provider(model), maxRetries: 0, stopWhen: stepCountIs(5),
  prompt: "How many degrees Fahrenheit are there in Paris?",
  tools: {
    temperature_of: answering("temperature_of", "city", "string", "21"),
    to_fahrenheit: answering("to_fahrenheit", "celsius", "number", "69.8"),
  },
});
for await (const part of result.fullStream) if (part.type === "error") throw part.error;
console.log(JSON.stringify({ called, answer: await result.text }));
