/** Something that went wrong, told to the person: what it is, and what to do about it. */

const KINDS = "WAV, FLAC, Ogg (Opus, Vorbis), MP3, M4A/MP4 and WebM are understood.";

const AGAIN = new Set([0, 408, 429, 500, 502, 503, 504]);
/** Statuses after which the same request may succeed. */

const ADVICE = {
  400: "Try another recording, or save this one anew. " + KINDS,
  403: "Choose another adapter, or use another token.",
  404: "The list of adapters is up to date again: choose another one.",
  408: "Look at your network connection, then try again.",
  413: "Choose a shorter recording, or have the server's limits raised (--max-megabytes, --max-seconds).",
  415: KINDS,
  429: "The server has more to do than it can take. Wait a little, then try again.",
  500: "The server's log tells more. Try again, or another recording.",
  503: "Try again when the server is back.",
  504: "Try a shorter recording, or again when the server has less to do.",
};

export class Problem extends Error {
  /**
   * @param {string} message what happened
   * @param {{advice?: string, status?: number}} [details] status: of HTTP; 0 where there was no answer
   */
  constructor(message, { advice = "", status = 0 } = {}) {
    super(message);
    this.advice = advice || (ADVICE[status] ?? "");
    this.status = status;
  }

  /** Whether trying once more makes sense. */
  get passing() {
    return AGAIN.has(this.status);
  }
}

/** The problem that an answer of the server tells of. */
export async function problemOf(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not the server's own words: something between it and this page
  }
  if (response.status === 415) message = "This file is no recording that the server can read.";
  const seconds = Number(response.headers.get("Retry-After"));
  const advice = response.status === 429 && seconds ? `Try again in ${counted(seconds, "second")}.` : "";
  return new Problem(message, { advice, status: response.status });
}

/** "1 second", "2 seconds" */
export function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

export function serverGone() {
  return new Problem("The server does not answer.", { advice: "See whether it is still running, then try again." });
}
