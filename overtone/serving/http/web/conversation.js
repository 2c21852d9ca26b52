/** One realtime session: audio in, words out while somebody speaks. */

import { Problem, serverGone } from "./problem.js";
import { alive, realtimeAddress, realtimeSession } from "./server.js";

const EVENT = "conversation.item.input_audio_transcription";
const MOST_WAITING = 2 ** 21;
/** Bytes that the connection may be behind: about a minute. */
const LAST_SECONDS = 30;

export class Conversation {
  /**
   * @param {string} model
   * @param {(conversation: Conversation) => void} tell called when there is something new
   * @param {(problem: Problem) => void} fail
   */
  constructor(model, tell, fail) {
    this.model = model;
    this.tell = tell;
    this.fail = fail;
    /** @type {import("./alignment.js").Word[]} */
    this.words = [];
    this.provisional = "";
    this.over = false;
    this.rate = 0;
    this.socket = null;
  }

  /** Returns when the server is ready to hear. Throws Problem. */
  async open() {
    const session = await realtimeSession();
    this.rate = session.input_audio_params.sample_rate_hz;
    const secret = session.client_secret ? [`realtime-token.${session.client_secret.value}`] : [];
    this.socket = new WebSocket(realtimeAddress(), ["realtime", ...secret]);
    this.ready = Promise.withResolvers();
    this.last = Promise.withResolvers();
    this.ready.promise.catch(() => {});
    this.last.promise.catch(() => {});
    this.socket.onmessage = ({ data }) => this.hear(JSON.parse(data));
    this.socket.onclose = async () => this.end((await alive()) ? refused() : serverGone());
    this.socket.onopen = () => this.configure();
    await this.ready.promise;
  }

  configure() {
    const session = {
      input_audio_format: "pcm16",
      input_audio_params: { sample_rate_hz: this.rate, num_channels: 1 },
      input_audio_transcription: { model: this.model },
      recognition_config: { enable_word_time_offsets: true },
    };
    this.socket.send(JSON.stringify({ type: "transcription_session.update", session }));
  }

  hear(message) {
    switch (message.type) {
      case "transcription_session.updated":
        this.ready.resolve();
        break;
      case `${EVENT}.delta`:
        this.provisional = message.delta;
        this.tell(this);
        break;
      case `${EVENT}.completed`:
        this.words.push(...message.words_info.words.map(worded));
        this.provisional = "";
        if (message.is_last_result) {
          this.over = true;
          this.last.resolve();
        }
        this.tell(this);
        break;
      case "error":
        this.end(new Problem(message.error.message, { status: STATUSES[message.error.code] ?? 400 }));
        break;
    }
  }

  /** @param {Int16Array} samples */
  send(samples) {
    if (this.over) return;
    this.socket.send(samples);
    if (this.socket.bufferedAmount > MOST_WAITING) {
      this.end(
        new Problem("The connection is too slow for live audio.", { advice: "Record it elsewhere, then choose the file." }),
      );
    }
  }

  /** Everything was said; returns with the last words. Throws Problem. */
  async finish() {
    if (!this.over) this.socket.send(JSON.stringify({ type: "input_audio_buffer.done" }));
    const late = setTimeout(() => this.end(serverGone()), 1000 * LAST_SECONDS);
    await this.last.promise.finally(() => clearTimeout(late));
    this.close();
  }

  close() {
    this.over = true;
    if (this.socket) {
      this.socket.onclose = null;
      this.socket.close();
    }
  }

  end(problem) {
    if (this.over) return;
    this.close();
    this.ready.reject(problem);
    this.last.reject(problem);
    this.fail(problem);
  }
}

/** A browser does not tell why a WebSocket was refused, or broke. */
function refused() {
  return new Problem("The server ended the live session; it is probably busy.", { status: 429 });
}

/** The codes of the server's errors that ask for advice of their own. */
const STATUSES = {
  deadline_exceeded: 504,
  forbidden: 403,
  invalid_api_key: 401,
  model_not_found: 404,
  not_found: 404,
  rate_limit_exceeded: 429,
  timeout: 408,
  too_large: 413,
  unavailable: 503,
  unsupported_media_type: 415,
};

function worded({ word, start_time, end_time, confidence }) {
  return { text: word, start: start_time / 1000, end: end_time / 1000, confidence };
}
