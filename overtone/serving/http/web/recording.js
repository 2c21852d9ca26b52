/** A recording: bytes for the server and the player, and an outline to be drawn. */

import { Peaks } from "./peaks.js";

const OUTLINE_RATE = 8000;

/**
 * @param {Blob} audio
 * @returns {Promise<{peaks: Peaks, seconds: number} | null>} null where the browser cannot read it
 */
export async function outline(audio) {
  try {
    const context = new OfflineAudioContext(1, 1, OUTLINE_RATE);
    const decoded = await context.decodeAudioData(await audio.arrayBuffer());
    const peaks = new Peaks(decoded.sampleRate);
    peaks.push(decoded.getChannelData(0));
    return { peaks, seconds: decoded.duration };
  } catch {
    return null;
  }
}

/**
 * A WAV file of one channel.
 * @param {Int16Array[]} pieces
 * @param {number} rate samples a second
 */
export function wav(pieces, rate) {
  const bytes = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (offset, letters) => [...letters].forEach((letter, i) => header.setUint8(offset + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // bytes of the format
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true); // bytes a second
  header.setUint16(32, 2, true); // bytes a frame
  header.setUint16(34, 16, true); // bits a sample
  text(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...pieces], { type: "audio/wav" });
}
