/** The microphone, heard at a rate of the server's choice. */

import { Problem } from "./problem.js";

const AS_IT_IS = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

const LAST_MILLISECONDS = 1000;

const REFUSALS = {
  NotAllowedError: ["The microphone is blocked.", "Allow it for this page in the browser's address bar, then try again."],
  NotFoundError: ["No microphone was found.", "Connect one, then try again; or choose a recording."],
  NotReadableError: ["The microphone cannot be used.", "Another program may hold it; close that, then try again."],
};

export class Microphone {
  /** Asks the person for it. Throws Problem. */
  static async open() {
    if (!navigator.mediaDevices?.getUserMedia || !globalThis.AudioWorkletNode) {
      throw new Problem("The browser gives the microphone only to pages over HTTPS, or on this computer itself.", {
        advice: "Open the page as https://… (overtone serve --tls-cert … --tls-key …) or as http://localhost:….",
      });
    }
    const context = new AudioContext();
    try {
      await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
      return new Microphone(context, await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS }));
    } catch (error) {
      await context.close();
      const [message, advice] = REFUSALS[error.name] ?? [`The microphone failed: ${error.message}.`, "Try again."];
      throw new Problem(message, { advice });
    }
  }

  constructor(context, media) {
    this.context = context;
    this.media = media;
    this.node = null;
  }

  /**
   * @param {number} rate samples a second
   * @param {(samples: Float32Array) => void} hear gets a tenth of a second at a time
   * @param {(problem: Problem) => void} fail
   */
  async listen(rate, hear, fail) {
    const node = new AudioWorkletNode(this.context, "capture", { processorOptions: { rate } });
    this.ended = new Promise((resolve) => {
      node.port.onmessage = ({ data }) => (data ? hear(data) : resolve());
    });
    this.media.getAudioTracks()[0].onended = () => {
      fail(new Problem("The microphone went away.", { advice: "Connect it again; what was said so far is kept." }));
    };
    this.context.createMediaStreamSource(this.media).connect(node).connect(this.context.destination); // silence
    this.node = node;
    await this.context.resume();
  }

  /** Returns when the last sample has been heard. */
  close() {
    this.closing ??= this.finish();
    return this.closing;
  }

  async finish() {
    if (this.node) {
      this.node.port.postMessage("finish");
      await Promise.race([this.ended, new Promise((resolve) => setTimeout(resolve, LAST_MILLISECONDS))]);
    }
    for (const track of this.media.getTracks()) track.stop();
    await this.context.close();
  }
}
