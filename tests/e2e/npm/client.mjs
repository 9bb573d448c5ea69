// Ask a gateway through the official npm client and print what came back as one JSON object.
//
//     node client.mjs BASE_URL KEY

import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const options = { baseURL, maxRetries: 0, timeout: 20_000 };
const client = new OpenAI({ ...options, apiKey });
const stranger = new OpenAI({ ...options, apiKey: "sk-wrong-key-000000000000" });
const MODEL = "up/emu-small";

const ask = (content, more = {}, from = client) =>
  from.chat.completions.create({ model: MODEL, messages: [{ role: "user", content }], ...more });

const draw = (prompt) => client.images.generate({ model: MODEL, prompt });

function failure(error) {
  const { status, message, code, type, param, requestID } = error;
  const retryAfter = error.headers?.get("retry-after") ?? null;
  const kind = error.constructor.name;
  return { kind, isApiError: error instanceof OpenAI.APIError, status: status ?? null, message,
    code: code ?? null, type: type ?? null, param: param ?? null, retryAfter, requestID };
}

async function told(request) {
  const seen = { text: "", reasons: [], usage: null, roles: [], models: [], failure: null };
  try {
    for await (const chunk of await request) {
      const choice = chunk.choices[0];
      seen.text += choice?.delta.content ?? "";
      seen.models.push(chunk.model);
      if (choice?.delta.role) seen.roles.push(choice.delta.role);
      if (choice?.finish_reason) seen.reasons.push(choice.finish_reason);
      if (chunk.usage) seen.usage = chunk.usage;
    }
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}

async function failed(request) {
  try {
    await request;
    return null;
  } catch (error) {
    return failure(error);
  }
}

async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return ids;
}

async function chat() {
  const answer = await ask("#echo 你好 👋");
  const [choice] = answer.choices;
  return { text: choice.message.content, reason: choice.finish_reason, usage: answer.usage,
    model: answer.model, created: answer.created, requestID: answer._request_id };
}

async function tools() {
  const events = client.chat.completions.stream({
    model: MODEL, messages: [{ role: "user", content: "#tools" }] });
  const { message } = (await events.finalChatCompletion()).choices[0];
  return message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
}

const usage = { stream: true, stream_options: { include_usage: true } };
const errors = {};
for (const [name, request] of Object.entries({
  400: () => ask("#400"),
  "400 ours": () => ask("hi", { n: 0 }),
  401: () => ask("hi", {}, stranger),
  "401 stream": () => ask("hi", { stream: true }, stranger),
  404: () => ask("hi", { model: "nobody" }),
  429: () => ask("#429"),
  "429 stream": () => ask("#429", { stream: true }),
  500: () => ask("#500"),
  "500 stream": () => ask("#500", { stream: true }),
  refused: () => ask("hi", { model: "gone/any" }),
  "refused stream": () => ask("hi", { model: "gone/any", stream: true }),
  cut: () => ask("#cut"),
  "picture 429": () => draw("#slow-headers:2.5 #429"),
  "picture text": () => draw("#slow-headers:2.5 a red fox"),
})) {
  errors[name] = await failed(request());
}

const report = {
  models: await models(),
  retrieved: (await client.models.retrieve("up/any-other")).id,
  chat: await chat(),
  tools: await tools(),
  stream: await told(ask("#chinese #bytes", usage)),
  cut: await told(ask("#cut", usage)),
  errors,
};
console.log(JSON.stringify(report));
