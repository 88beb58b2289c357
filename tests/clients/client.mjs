// Streams and completes with the official npm client; prints what it saw as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
const ask = { model: "oracle", messages: [{ role: "user", content: "Once upon a time" }], max_tokens: 24, temperature: 0 };
const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
let error = 0;
try {
  await client.completions.create({ model: "nobody", prompt: "x" });
} catch (e) {
  error = e.status;
}
console.log(JSON.stringify({ whole, streamed, models, error }));
