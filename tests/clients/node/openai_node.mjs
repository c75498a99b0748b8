// OpenAI's Node client: chat, streams with its runner, zod formats, tools, responses, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { VERSION } from "openai/version";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.MOI_URL + "/v1", apiKey: "k", maxRetries: 0 });
const model = process.env.MOI_MODEL;
const messages = [{ role: "user", content: "Count to five." }];
const City = z.object({ name: z.enum(["Paris", "Rome"]), size: z.literal([1, 2]) });

const asked = { model, messages, max_tokens: 12, temperature: 0 };
const whole = await client.chat.completions.create(asked);
const text = whole.choices[0].message.content;
assert.ok(text);
assert.equal(whole.usage.completion_tokens, 12);

let streamed = "";
const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? "";
assert.equal(streamed, text);

// Its runner puts chunks together, and passes them on as a web stream.
const runner = client.chat.completions.stream({ ...asked, max_tokens: 30, stop: [" "] });
const final = await runner.finalChatCompletion();
assert.equal(final.choices[0].finish_reason, "stop");
const again = client.chat.completions.stream({ ...asked, max_tokens: 30, stop: [" "] });
let passed = 0;
for await (const _ of again.toReadableStream()) passed += 1;
assert.ok(passed > 1);

const parsed = await client.chat.completions.parse({
  model, messages, max_tokens: 120, temperature: 0, response_format: zodResponseFormat(City, "city"),
});
assert.ok(City.parse(parsed.choices[0].message.parsed));

const weather = { type: "function", function: { name: "weather", strict: true, parameters: {
  type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false } } };
const tools = { ...asked, max_tokens: 100, tools: [weather], tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.stream(tools).finalChatCompletion();
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.ok(["Paris", "Rome"].includes(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city));

const response = await client.responses.create({ model, input: "Count to five.", max_output_tokens: 12, temperature: 0 });
assert.equal(response.output_text, text);
let deltas = "";
const events = client.responses.stream({ model, input: "Count to five.", max_output_tokens: 12, temperature: 0 });
for await (const event of events) if (event.type === "response.output_text.delta") deltas += event.delta;
assert.equal(deltas, text);
assert.equal((await events.finalResponse()).status, "incomplete");

await assert.rejects(client.chat.completions.create({ model: "nothing", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError);

// A client that leaves: the server goes on with others.
const left = await client.chat.completions.create({ ...asked, max_tokens: 150, stream: true });
for await (const _ of left) break;
console.log(`openai (node) ${VERSION}: chat, streams, runner, zod, tools, responses, errors`);
