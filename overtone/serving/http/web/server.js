/** The server's HTTP interface, as far as this page needs it. Every function throws `Problem`. */

import { Problem, problemOf, serverGone } from "./problem.js";
import { token } from "./token.js";

const ROOT = new URL("../v1/", import.meta.url);
const LARGE = 2 ** 22;
const PATIENCE = 5000;
/** Milliseconds for an answer of the server that it runs. */

/** The base first, then the adapters that the token opens, as OpenAI's models. */
export async function models() {
  return (await (await ask("models")).json()).data;
}

/** Recordings to try: `{name, text, file}`. */
export async function examples() {
  return (await answered(new URL("examples.json", import.meta.url), {})).json();
}

/**
 * @param {Blob} audio
 * @param {string} model
 * @param {AbortSignal} signal
 * @returns {Promise<{words: import("./alignment.js").Word[], seconds: number}>}
 */
export async function transcribe(audio, model, signal) {
  const form = new FormData();
  form.append("model", model);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("file", audio, "recording");
  const size = audio.size;
  const answer = await (await ask("audio/transcriptions", { method: "POST", body: form, signal }, size)).json();
  const words = answer.words.map(({ word, start, end, confidence }) => ({ text: word, start, end, confidence }));
  return { words, seconds: answer.duration };
}

/** Hands in what was really said; the state of learning, and how many corrections are `new`. */
export async function correct(name, text, audio) {
  const form = new FormData();
  form.append("text", text);
  form.append("file", audio, "recording");
  return (await ask(`adapters/${name}/corrections`, { method: "POST", body: form }, audio.size)).json();
}

/** What an adapter has learnt, and what its learner does. */
export async function learning(name) {
  return (await ask(`adapters/${name}/learning`)).json();
}

/** Puts the version before in its place. */
export async function goBack(name) {
  return (await ask(`adapters/${name}/back`, { method: "POST" })).json();
}

/** A session with the server's defaults; with tokens it holds the secret that opens its WebSocket. */
export async function realtimeSession() {
  return (await ask("realtime/transcription_sessions", { method: "POST" })).json();
}

export function realtimeAddress() {
  const address = new URL("realtime?intent=transcription", ROOT);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

function ask(path, options = {}, size = 0) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  return answered(new URL(path, ROOT), { ...options, headers }, size);
}

async function answered(address, options, size = 0) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw size > LARGE && (await alive()) ? cutOff() : serverGone();
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** Whether the server still runs, and answers in time: one that is stopping may leave a connection open. */
export async function alive() {
  try {
    return (await fetch(new URL("health/live", ROOT), { signal: AbortSignal.timeout(PATIENCE) })).ok;
  } catch {
    return false;
  }
}

/** A server that has refused a body may close the connection before the browser has read why. */
function cutOff() {
  return new Problem("The server broke off the upload; the recording is probably too large.", { status: 413 });
}
