/** Live: what the microphone hears goes to one conversation for each model, and is kept. */

import { Conversation } from "./conversation.js";
import { Microphone } from "./microphone.js";
import { Peaks } from "./peaks.js";
import { wav } from "./recording.js";
import { realtimeSession } from "./server.js";

export class Listening {
  /**
   * @param {string[]} models
   * @param {{told: (side: number, conversation: Conversation) => void, heard: () => void,
   *   failed: (problem: import("./problem.js").Problem) => void}} handlers
   */
  constructor(models, { told, heard, failed }) {
    this.heard = heard;
    this.failed = failed;
    this.ready = false;
    this.over = false;
    this.problem = null;
    this.pieces = [];
    this.peaks = null;
    this.microphone = null;
    this.conversations = models.map(
      (model, side) => new Conversation(model, (each) => told(side, each), (problem) => this.fail(problem)),
    );
  }

  /** Returns when the server listens; what is said until then is not lost. Throws Problem, and nothing is open then. */
  async begin() {
    try {
      const session = await realtimeSession();
      this.microphone = await Microphone.open();
      this.rate = session.input_audio_params.sample_rate_hz;
      this.peaks = new Peaks(this.rate);
      await this.microphone.listen(this.rate, (samples) => this.hear(samples), (problem) => this.fail(problem));
      await Promise.all(this.conversations.map((conversation) => conversation.open()));
      if (this.problem) throw this.problem;
      for (const piece of this.pieces) this.send(piece);
      this.ready = true;
    } catch (problem) {
      this.over = true;
      await this.leave();
      throw problem;
    }
  }

  hear(samples) {
    const piece = Int16Array.from(samples, (sample) => 32767 * Math.max(-1, Math.min(1, sample)));
    this.pieces.push(piece);
    this.peaks.push(samples);
    if (!this.ready) return;
    this.send(piece);
    this.heard();
  }

  send(piece) {
    for (const conversation of this.conversations) conversation.send(piece);
  }

  /** Everything was said; returns when all words have come. What goes wrong is told to `failed`. */
  async finish() {
    await this.microphone.close();
    await Promise.allSettled(this.conversations.map((conversation) => conversation.finish()));
    if (this.problem) return false;
    this.over = true;
    return true;
  }

  /** What was said, as a WAV file. */
  recording() {
    return wav(this.pieces, this.rate);
  }

  async fail(problem) {
    this.problem ??= problem;
    if (this.over || !this.ready) return; // while it begins, `begin` tells of it
    this.over = true;
    await this.leave();
    this.failed(problem);
  }

  async leave() {
    for (const conversation of this.conversations) conversation.close();
    await this.microphone?.close();
  }
}
