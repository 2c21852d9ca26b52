/** In the audio thread: what the microphone gives, at the rate that is wanted, in pieces of a tenth of a second. */

import { Resampler } from "./resampler.js";

const PIECES_PER_SECOND = 10;

registerProcessor(
  "capture",
  class extends AudioWorkletProcessor {
    constructor({ processorOptions: { rate } }) {
      super();
      this.resampler = sampleRate === rate ? null : new Resampler(sampleRate, rate);
      this.piece = new Float32Array(rate / PIECES_PER_SECOND);
      this.filled = 0;
      this.ended = false;
      this.port.onmessage = () => this.finish();
    }

    process([[samples]]) {
      if (samples && !this.ended) this.add(this.resampler ? this.resampler.push(samples) : samples);
      return !this.ended;
    }

    add(samples) {
      for (const sample of samples) {
        this.piece[this.filled] = sample;
        this.filled += 1;
        if (this.filled === this.piece.length) this.tell();
      }
    }

    tell() {
      this.port.postMessage(this.piece.slice(0, this.filled));
      this.filled = 0;
    }

    finish() {
      if (this.resampler && !this.ended) this.add(this.resampler.finish());
      this.ended = true;
      this.tell();
      this.port.postMessage(null);
    }
  },
);
