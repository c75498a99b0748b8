// Anthropic's Node client: messages, its accumulator, tools, counts, errors.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.MOI_URL, apiKey: "k", maxRetries: 0 });
const model = process.env.MOI_MODEL;
const messages = [{ role: "user", content: "Count to five." }];
const asked = { model, messages, max_tokens: 12, top_k: 1 };

const whole = await client.messages.create(asked);
assert.ok(whole.content[0].text);
const stream = client.messages.stream(asked);
let text = "";
stream.on("text", (piece) => { text += piece; });
const final = await stream.finalMessage();
assert.equal(text, whole.content[0].text);
assert.deepEqual([final.stop_reason, final.usage.output_tokens], ["max_tokens", 12]);
const counted = await client.messages.countTokens({ model, messages });
assert.equal(counted.input_tokens, final.usage.input_tokens + final.usage.cache_read_input_tokens);

const tools = [{ name: "weather", input_schema: {
  type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] } }];
const called = await client.messages.stream({
  ...asked, max_tokens: 100, tools, tool_choice: { type: "any", disable_parallel_tool_use: true },
}).finalMessage();
assert.equal(called.stop_reason, "tool_use");
assert.ok(["Paris", "Rome"].includes(called.content[0].input.city));

await assert.rejects(client.messages.create({ ...asked, model: "nothing" }), Anthropic.NotFoundError);
await assert.rejects(client.messages.create({ ...asked, messages: [] }), Anthropic.BadRequestError);
const { version } = JSON.parse(readFileSync(new URL("./package.json", import.meta.resolve("@anthropic-ai/sdk"))));
console.log(`anthropic (node) ${version}: messages, streams, tools, counts, errors`);
