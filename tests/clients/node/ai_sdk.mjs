// The AI SDK: texts whole and streamed, objects, a loop of tools, extras through provider options.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  baseURL: process.env.MOI_URL + "/v1", name: "moi", apiKey: "k", includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider(process.env.MOI_MODEL);
const base = { model, temperature: 0, maxRetries: 0 };

const whole = await generateText({ ...base, prompt: "Count to five.", maxOutputTokens: 12 });
assert.ok(whole.text);
assert.equal(whole.usage.outputTokens, 12);
assert.equal(whole.finishReason, "length");

const streamed = streamText({
  ...base, prompt: "Count to five.", maxOutputTokens: 12, onError: ({ error }) => { throw error; },
});
let text = "";
for await (const piece of streamed.textStream) text += piece;
assert.equal(text, whole.text);
assert.equal((await streamed.usage).outputTokens, 12);

const mixed = await generateText({
  ...base, prompt: "Count to five.", maxOutputTokens: 12, providerOptions: { moi: { moi: { rule: "moi", beta: 2 } } },
});
assert.ok(mixed.text);

const City = z.object({ name: z.enum(["Paris", "Rome"]), size: z.literal([1, 2]) });
const object = await generateText({
  ...base, prompt: "Name a city.", maxOutputTokens: 80, output: Output.object({ schema: City }),
});
assert.ok(City.parse(object.output));

let runs = 0;
const weather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
  execute: async ({ city }) => { runs += 1; return `sunny in ${city}`; },
});
for (const call of [generateText, streamText]) {
  const loop = await call({
    ...base, prompt: "How is the weather in Paris?", maxOutputTokens: 100, tools: { weather },
    toolChoice: { type: "tool", toolName: "weather" }, stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => (stepNumber > 0 ? { toolChoice: "none" } : {}),
  });
  const steps = await loop.steps;
  assert.equal(steps[0].finishReason, "tool-calls");
  assert.equal(steps.length, 2);
}
assert.equal(runs, 2);

// Two calls in one answer, put together from a stream.
const form = (city) => `<tool_call>\n{"name": "weather", "arguments": {"city": "${city}"}}\n</tool_call>`;
const tokens = process.env.MOI_PEER ? {} : await fetch(process.env.MOI_URL + "/tokenize", {
  method: "POST", headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ prompt: `${form("Paris")}\n${form("Rome")}<|im_end|>`, add_special_tokens: false }),
}).then((answer) => answer.json());
// Another server cannot be told which tokens to generate.
for (const call of process.env.MOI_PEER ? [] : [generateText, streamText]) {
  const both = await call({
    ...base, prompt: "How is the weather in Paris and in Rome?", maxOutputTokens: 200, tools: { weather }, stopWhen: stepCountIs(1),
    providerOptions: { moi: { moi: { rule: "token", force: tokens.tokens } } },
  });
  const calls = await both.toolCalls;
  assert.deepEqual(calls.map(({ toolName, input }) => [toolName, input.city]), [["weather", "Paris"], ["weather", "Rome"]]);
  assert.notEqual(calls[0].toolCallId, calls[1].toolCallId);
  assert.equal((await both.toolResults).length, 2);
}

await assert.rejects(generateText({ ...base, model: provider("nothing"), prompt: "a" }), /not served here/);
const { version } = JSON.parse(readFileSync(new URL(import.meta.resolve("ai/package.json"))));
console.log(`ai ${version}: texts, streams, objects, tools in a loop, two calls at once, provider options, errors`);
